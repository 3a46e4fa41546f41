"""Operations of Core ML's intermediate language (MIL), each one plain function on torch tensors.

A function's parameters have the names and the defaults that coremltools' definitions give them
(`coremltools/converters/mil/mil/ops/defs`, iOS 15 to 18). Those annotated as tensors may be
computed; all others must stand in the file as constants and arrive as plain Python values. Each
function computes in float32 and sees the shapes that the file declares; rounding to the declared
type is the caller's part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.formats.coreml import compressed
from pipeline.formats.coreml.windows import avg_pool, conv, max_pool, padded

Ints = Sequence[int]

_RANGES = {"int8": (-128, 127, torch.int8), "uint8": (0, 255, torch.uint8)}
_CASTS = {
    "fp16": torch.float32,  # the caller rounds
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "bool": torch.bool,
}


_GELUS = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
    return torch.matmul(x, y)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def _along(values: Tensor, axis: int | None, x: Tensor) -> Tensor:
    """A scalar as it is, a vector with its elements along `axis` of `x`."""
    if values.dim() == 0:
        return values
    if axis is None:
        raise NotImplementedError("a vector of scales or zero points without an axis")
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _steps(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """The integers of a grid that numbers are nearest to, as a new tensor of float32."""
    if output_dtype not in _RANGES:
        raise NotImplementedError(f"output_dtype {output_dtype!r}")
    lowest, highest, _ = _RANGES[output_dtype]
    steps = torch.div(input, _along(scale, axis, input)).round_()  # half to even
    if zero_point is not None:
        steps.add_(_along(zero_point, axis, input))
    return steps.clamp(lowest, highest)  # clamp_ has no rule for vmap


def _quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    return _steps(input, scale, output_dtype, zero_point, axis).to(_RANGES[output_dtype][2])


def _numbers(
    steps: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """What the integers of a grid stand for; they are given as float32, and are changed."""
    if zero_point is not None:
        steps.sub_(_along(zero_point, axis, steps))
    return steps.mul_(_along(scale, axis, steps))


def _dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    return _numbers(input.to(torch.float32, copy=True), scale, zero_point, axis)


def to_grid_and_back(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    back_scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
    back_zero_point: Tensor | None = None,
    back_axis: int | None = None,
) -> Tensor:
    """`quantize`, and `dequantize` of what it gives: the same numbers, and no integers between."""
    steps = _steps(input, scale, output_dtype, zero_point, axis)
    return _numbers(steps, back_scale, back_zero_point, back_axis)


def _constexpr_affine_dequantize(
    quantized_data: Tensor, scale: Tensor, zero_point: Tensor, axis: int
) -> Tensor:
    return _dequantize(quantized_data, scale, zero_point, axis)


def _cast(x: Tensor, dtype: str) -> Tensor:
    if dtype not in _CASTS:
        raise NotImplementedError(f"dtype {dtype!r}")
    return x.to(_CASTS[dtype])


def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def _leaky_relu(x: Tensor, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def _elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode not in _GELUS:
        raise NotImplementedError(f"mode {mode!r}")
    return F.gelu(x, approximate=_GELUS[mode])


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor) -> Tensor:
        return function(x)

    return apply


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return apply


def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


def _log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def _axes(x: Tensor, axes: Ints | None) -> list[int]:
    return list(range(x.dim()) if axes is None else axes)


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return function(x, _axes(x, axes), keepdim=keep_dims)

    return apply


def _split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is None:
        assert num_splits is not None
        split_sizes = [x.shape[axis] // num_splits] * num_splits
    return torch.split(x, list(split_sizes), axis)


def _concat(values: tuple[Tensor, ...], axis: int, interleave: bool = False) -> Tensor:
    if interleave:
        raise NotImplementedError("interleave")
    return torch.cat(values, axis)


def _slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    stride = stride or [1] * x.dim()
    from_start, to_end, squeezed = (
        mask or [False] * x.dim() for mask in (begin_mask, end_mask, squeeze_mask)
    )
    for axis in reversed(range(x.dim())):  # so that squeezing moves none that is still to come
        if squeezed[axis]:
            x = x.select(axis, 0 if from_start[axis] else begin[axis])
            continue
        first = None if from_start[axis] else begin[axis]
        last = None if to_end[axis] else end[axis]
        wanted = range(*slice(first, last, stride[axis]).indices(x.shape[axis]))
        if wanted.step == 1:
            x = x.narrow(axis, wanted.start, len(wanted))
        else:  # torch has no negative steps
            x = x.index_select(axis, torch.tensor(wanted, dtype=torch.int64))
    return x


def _slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        first = first + x.shape[axis] if first < 0 else first
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


def _reshape(x: Tensor, shape: Ints) -> Tensor:
    # A zero takes the size at the same place, counted from the last; 1 where there is none.
    sizes = dict(enumerate(reversed(x.shape)))
    places = range(len(shape) - 1, -1, -1)
    return x.reshape([n or sizes.get(place, 1) for n, place in zip(shape, places, strict=True)])


def _transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(*perm)


def _expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze(_axes(x, axes))  # sizes other than 1 stay, in MIL as in torch


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return F.pixel_shuffle(x, int(upscale_factor))


def _upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    factors = [scale_factor_height, scale_factor_width]
    if any(factor != round(factor) for factor in factors):
        raise NotImplementedError(f"factors {factors} that are no whole numbers")
    for axis, factor in zip((-2, -1), factors, strict=True):
        x = x.repeat_interleave(int(factor), axis)
    return x


def _upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    if align_corners or half_pixel_centers is False:
        raise NotImplementedError("aligned corners, or no half pixels")
    factors = (scale_factor_height, scale_factor_width)
    size = [round(side * factor) for side, factor in zip(x.shape[-2:], factors, strict=True)]
    return F.interpolate(x, size, mode="bilinear")


def _pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    if mode != "constant":
        raise NotImplementedError(f"mode {mode!r}")
    return padded(x, list(zip(pad[::2], pad[1::2], strict=True)), constant_val)


CHOOSING = frozenset(
    {
        *("concat", "expand_dims", "identity", "max_pool", "maximum", "minimum", "pixel_shuffle"),
        *("reduce_max", "relu", "reshape", "slice_by_index", "slice_by_size", "split", "squeeze"),
        *("transpose", "upsample_nearest_neighbor"),
    }
)
"""Operations that compute no number: each that they give is one that they were given, or 0."""
OPS: dict[str, Callable[..., Any]] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "avg_pool": avg_pool,
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "constexpr_affine_dequantize": _constexpr_affine_dequantize,
    "constexpr_blockwise_shift_scale": compressed.blockwise_shift_scale,
    "constexpr_lut_to_dense": compressed.lut_to_dense,
    "constexpr_lut_to_sparse": compressed.lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": compressed.sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": compressed.sparse_to_dense,
    "conv": conv,
    "cos": _unary(torch.cos),
    "dequantize": _dequantize,
    "elu": _elu,
    "exp": _unary(torch.exp),
    "expand_dims": _expand_dims,
    "gelu": _gelu,
    "identity": _unary(lambda x: x),
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "log": _log,
    "matmul": _matmul,
    "max_pool": max_pool,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pow": _binary(torch.pow),
    "quantize": _quantize,
    "real_div": _binary(torch.div),
    "reduce_max": _reduction(torch.amax),
    "reduce_mean": _reduction(torch.mean),
    "reduce_sum": _reduction(torch.sum),
    "relu": _unary(torch.relu),
    "relu6": _unary(F.relu6),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "sigmoid": _unary(torch.sigmoid),
    "sin": _unary(torch.sin),
    "silu": _unary(F.silu),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "softmax": _softmax,
    "split": _split,
    "sqrt": _unary(torch.sqrt),
    "squeeze": _squeeze,
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
    "transpose": _transpose,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest_neighbor,
}
"""Every operation that can be evaluated, besides `const`; each gives a tensor or several."""
