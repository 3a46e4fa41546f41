"""What each operation of a program is in ONNX: a function and a line in `OPERATIONS`.

Quantized programs hold the operations that `networks.lowering` leaves and the roundings of
quantization, and no others, so that each is written as it stands. torch's own exporter decomposes a
program anew and optimizes what it has written, which takes twenty times as long; the tests compare
with it. Programs of float targets may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchao.quantization.pt2e  # noqa: F401  registers the quantized_decomposed operations
from torch import Tensor, fx

from pipeline.formats.onnx_graph import Graph

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
Operation = Callable[..., None]
"""Adds a node of a program to a graph: `operation(graph, node, *arguments of the node)`."""


def _pair(value: Any) -> tuple[int, int]:
    """Height and width of what torch takes as one number, as a list of one or of two."""
    first, *rest = [value] if isinstance(value, int) else value
    return int(first), int(rest[0] if rest else first)


def _around(padding: Any) -> list[int]:
    return [*_pair(padding), *_pair(padding)]


def _shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _axis(node: fx.Node, dim: int) -> int:
    return int(dim % len(_shape(node)))


def _quantize(
    g: Graph, n: fx.Node, x: fx.Node, scale: float, zero: int, *_: Any, **kinds: Any
) -> None:
    g.add("QuantizeLinear", n, [g.name_of(x), *_grid(g, scale, zero)])


def _dequantize(
    g: Graph, n: fx.Node, x: fx.Node, scale: float, zero: int, *_: Any, **kinds: Any
) -> None:
    """Several readers of a rounded tensor have a node each; the file has one for all of them."""
    inputs = [g.name_of(x), *_grid(g, scale, zero)]
    if g.once(("dequantized", *inputs), n):
        g.add("DequantizeLinear", n, inputs)


def _grid(g: Graph, scale: float, zero: int) -> list[str]:
    return [
        g.constant(scale, np.float32),
        g.constant(zero, np.int8),
    ]


def _dequantize_weights(
    g: Graph, n: fx.Node, x: fx.Node, scales: fx.Node, zeros: fx.Node, axis: int, *_: Any, **k: Any
) -> None:
    zero = g.constant(np.zeros(_shape(scales)), np.int8)
    g.add("DequantizeLinear", n, [g.stored(x), g.stored(scales), zero], axis=axis)


def _convolution(
    g: Graph,
    n: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    kernel, spread = _shape(weight)[2:], _pair(dilation)
    if padding == "valid":
        padding = 0
    if padding == "same":  # even: what is not was made a padding of its own
        padding = [(k - 1) * d // 2 for k, d in zip(kernel, spread, strict=True)]
    # Zeros would become an addition of their own, which converters take out with its name.
    inputs = [x, weight] if bias is None or g.is_zero(bias) else [x, weight, bias]
    g.add(
        "Conv",
        n,
        [g.name_of(one) for one in inputs],
        kernel_shape=list(kernel),
        strides=list(_pair(stride)),
        pads=_around(padding),
        dilations=list(spread),
        group=groups,
    )


def _both(op: str) -> Operation:
    """An operation of two tensors, or of a tensor and a number."""

    def add(g: Graph, n: fx.Node, x: Any, y: Any, *, alpha: float = 1) -> None:
        if alpha != 1:
            raise NotImplementedError(f"{n.name}: alpha {alpha}; only 1 is written")
        g.add(op, n, [g.name_of(x), g.name_of(y)])

    return add


def _each(op: str) -> Operation:
    """An operation number by number."""

    def add(g: Graph, n: fx.Node, x: fx.Node) -> None:
        g.add(op, n, [g.name_of(x)])

    return add


def _rsqrt(g: Graph, n: fx.Node, x: fx.Node) -> None:
    g.add("Reciprocal", n, [g.add_before("Sqrt", n, [g.name_of(x)])])


def _clip(g: Graph, n: fx.Node, x: fx.Node, low: float = -1, high: float = 1) -> None:
    ends = [g.constant(end, np.float32) for end in (low, high)]
    g.add("Clip", n, [g.name_of(x), *ends])


def _leaky_relu(g: Graph, n: fx.Node, x: fx.Node, slope: float = 0.01) -> None:
    g.add("LeakyRelu", n, [g.name_of(x)], alpha=float(slope))


def _elu(
    g: Graph, n: fx.Node, x: fx.Node, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> None:
    if (scale, input_scale) != (1, 1):
        raise NotImplementedError(f"{n.name}: scales {scale}, {input_scale}; only 1 is written")
    g.add("Elu", n, [g.name_of(x)], alpha=float(alpha))


def _gelu(g: Graph, n: fx.Node, x: fx.Node, *, approximate: str = "none") -> None:
    g.add("Gelu", n, [g.name_of(x)], approximate=approximate)


def _softmax(g: Graph, n: fx.Node, x: fx.Node, dim: int, dtype: object = None) -> None:
    g.add("Softmax", n, [g.name_of(x)], axis=_axis(x, dim))


def _mean(
    g: Graph, n: fx.Node, x: fx.Node, dim: Any = None, keepdim: bool = False, **k: Any
) -> None:
    """Means over height and width that keep them are GlobalAveragePool.

    ONNX Runtime has an integer kernel for that one and none for ReduceMean; onnx2tf keeps the
    layout straight through it. Means over other axes stay what they are.
    """
    rank = len(_shape(x))
    axes = sorted(_axis(x, one) for one in ([dim] if isinstance(dim, int) else dim or range(rank)))
    if (rank, axes, keepdim) == (4, [2, 3], True):
        return g.add("GlobalAveragePool", n, [g.name_of(x)])
    given = g.constant(axes, np.int64)
    return g.add("ReduceMean", n, [g.name_of(x), given], keepdims=int(keepdim))


def _max_pool(
    g: Graph,
    n: fx.Node,
    x: fx.Node,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> None:
    g.add(
        "MaxPool",
        n,
        [g.name_of(x)],
        kernel_shape=list(_pair(kernel)),
        strides=list(_pair(stride or kernel)),
        pads=_around(padding),
        dilations=list(_pair(dilation)),
        ceil_mode=int(ceil_mode),
    )


def _average_pool(
    g: Graph,
    n: fx.Node,
    x: fx.Node,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> None:
    assert divisor_override is None, "refused before: formats.refusals"
    g.add(
        "AveragePool",
        n,
        [g.name_of(x)],
        kernel_shape=list(_pair(kernel)),
        strides=list(_pair(stride or kernel)),
        pads=_around(padding),
        ceil_mode=int(ceil_mode),
        count_include_pad=int(count_include_pad),
    )


def _concatenate(g: Graph, n: fx.Node, parts: Sequence[fx.Node], dim: int = 0) -> None:
    g.add("Concat", n, [g.name_of(one) for one in parts], axis=_axis(n, dim))


def _slice(
    g: Graph,
    n: fx.Node,
    x: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> None:
    size = _shape(x)[_axis(x, dim)]
    ends = (start or 0, size if end is None else min(end, size), _axis(x, dim), step)
    given = [g.constant([value], np.int64) for value in ends]
    g.add("Slice", n, [g.name_of(x), *given])


def _reshape(g: Graph, n: fx.Node, x: fx.Node, *_: Any) -> None:
    """The batch, which is of any size, stays first; in ONNX a 0 leaves a size as it is."""
    sizes = [size if isinstance(size, int) else None for size in _shape(n)]
    if None in sizes[1:] or (sizes[0] is None) != (not isinstance(_shape(x)[0], int)):
        raise NotImplementedError(f"{n.name}: a reshape of {_shape(x)} that moves the batch")
    shape = [0 if size is None else size for size in sizes]
    g.add("Reshape", n, [g.name_of(x), g.constant(shape, np.int64)])


def _pad(g: Graph, n: fx.Node, x: fx.Node, pads: Sequence[int], value: float = 0) -> None:
    before, after = [0] * len(_shape(x)), [0] * len(_shape(x))
    for place, axis in enumerate(range(len(before) - 1, len(before) - 1 - len(pads) // 2, -1)):
        before[axis], after[axis] = pads[2 * place : 2 * place + 2]
    around = g.constant([*before, *after], np.int64)
    given = [around] if value == 0 else [around, g.name_of(value)]
    g.add("Pad", n, [g.name_of(x), *given])


def _transpose(g: Graph, n: fx.Node, x: fx.Node, one: int, other: int) -> None:
    order = list(range(len(_shape(x))))
    one, other = _axis(x, one), _axis(x, other)
    order[one], order[other] = other, one
    g.add("Transpose", n, [g.name_of(x)], perm=order)


def _permute(g: Graph, n: fx.Node, x: fx.Node, dims: Sequence[int]) -> None:
    g.add("Transpose", n, [g.name_of(x)], perm=[_axis(x, dim) for dim in dims])


def _pixel_shuffle(g: Graph, n: fx.Node, x: fx.Node, factor: int) -> None:
    g.add("DepthToSpace", n, [g.name_of(x)], blocksize=factor, mode="CRD")


def _resize(mode: str, **attributes: str) -> Operation:
    """Enlarging by whole numbers; those in place of sizes leave the batch free."""

    def add(g: Graph, n: fx.Node, x: fx.Node, size: Sequence[int], *corners: Any) -> None:
        if any(corners):
            raise NotImplementedError(f"{n.name}: aligned corners, or scales; neither is written")
        factors = [new / old for new, old in zip(size, _shape(x)[2:], strict=True)]
        given = g.constant([1, 1, *factors], np.float32)
        g.add("Resize", n, [g.name_of(x), "", given], mode=mode, **attributes)

    return add


def _nothing(g: Graph, n: fx.Node, x: fx.Node, *_: Any, **given: Any) -> None:
    g.take(n, g.name_of(x))


OPERATIONS: dict[Any, Operation] = {
    quantized.quantize_per_tensor.default: _quantize,
    quantized.dequantize_per_tensor.default: _dequantize,
    quantized.dequantize_per_channel.default: _dequantize_weights,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.add.Tensor: _both("Add"),
    aten.sub.Tensor: _both("Sub"),
    aten.mul.Tensor: _both("Mul"),
    aten.div.Tensor: _both("Div"),
    aten.maximum.default: _both("Max"),
    aten.minimum.default: _both("Min"),
    aten.pow.Tensor_Scalar: _both("Pow"),
    aten.relu.default: _each("Relu"),
    aten.sigmoid.default: _each("Sigmoid"),
    aten.tanh.default: _each("Tanh"),
    aten.exp.default: _each("Exp"),
    aten.log.default: _each("Log"),
    aten.sqrt.default: _each("Sqrt"),
    aten.abs.default: _each("Abs"),
    aten.sin.default: _each("Sin"),
    aten.cos.default: _each("Cos"),
    aten.neg.default: _each("Neg"),
    aten.rsqrt.default: _rsqrt,
    aten.hardtanh.default: _clip,
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.gelu.default: _gelu,
    aten.softmax.int: _softmax,
    aten.mean.dim: _mean,
    aten.max_pool2d.default: _max_pool,
    aten.avg_pool2d.default: _average_pool,
    aten.cat.default: _concatenate,
    aten.slice.Tensor: _slice,
    aten.flatten.using_ints: _reshape,
    aten.reshape.default: _reshape,
    aten.view.default: _reshape,
    aten.constant_pad_nd.default: _pad,
    aten.transpose.int: _transpose,
    aten.permute.default: _permute,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.upsample_nearest2d.default: _resize(
        "nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    ),
    aten.upsample_bilinear2d.default: _resize(
        "linear", coordinate_transformation_mode="half_pixel"
    ),
    aten.dropout.default: _nothing,
}
"""By the operation of torch."""


def are_all_known(program: torch.export.ExportedProgram) -> bool:
    """Whether a program holds these operations alone: none of a float network's own, none in place.

    Sizes are no operations.
    """
    return all(
        node.target in OPERATIONS
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    )
