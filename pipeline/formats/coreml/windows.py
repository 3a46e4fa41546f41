"""Operations of Core ML's intermediate language with a sliding window: convolution and pooling.

See `mil_ops` for what all operations have in common.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Ints = Sequence[int]
Pads = list[tuple[int, int]]
"""Elements to add before and after each of the last dimensions."""

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _pads(pad_type: str, pad: Ints | None, sizes: Ints, kernel: Ints, strides: Ints) -> Pads:
    """What a `pad_type` means; `kernel` is the size with its dilation.

    coremltools' text for "same" gives half the kernel on both sides, its shape inference and its
    TensorFlow frontend give ceil(size / stride) outputs, as here. Both agree for stride 1.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        given = list(pad) if pad is not None else [0] * 2 * len(sizes)
        return list(zip(given[::2], given[1::2], strict=True))
    if pad_type not in {"same", "same_lower"}:
        raise NotImplementedError(f"pad_type {pad_type!r}")
    pads = []
    for size, extent, stride in zip(sizes, kernel, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if pad_type == "same" else (more, less))
    return pads


def padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    """`x` with `value` around its last dimensions."""
    if not any(map(any, pads)):
        return x
    return F.pad(x, [n for before_after in reversed(pads) for n in before_after], value=value)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of (batch, channels, *sizes) in 1 to 3 dimensions."""
    dimensions = x.dim() - 2
    strides, dilations = (list(v) if v else [1] * dimensions for v in (strides, dilations))
    kernel = [d * (k - 1) + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(pad_type, pad, x.shape[2:], kernel, strides)
    even = [before for before, after in pads if before == after]
    if len(even) < len(pads):
        x, even = padded(x, pads), [0] * dimensions
    return _CONVOLUTIONS[dimensions](x, weight, bias, strides, even, dilations, groups)


def _pool_pads(
    x: Tensor, kernel: Ints, strides: Ints, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> tuple[Pads, Pads]:
    """Padding of a pooling window, and what `ceil_mode` adds for the last window to be whole."""
    pads = _pads(pad_type, pad, x.shape[2:], kernel, strides)
    if not ceil_mode:
        return pads, [(0, 0)] * len(pads)
    if pad_type in {"same", "same_lower"}:
        raise NotImplementedError(f"ceil_mode with pad_type {pad_type!r}")
    more = []
    windows = zip(x.shape[2:], kernel, strides, pads, strict=True)
    for size, extent, stride, (before, after) in windows:
        last = math.ceil((size + before + after - extent) / stride)
        if last * stride >= size + before:  # a window must begin inside
            last -= 1
        more.append((0, max(0, last * stride + extent - size - before - after)))
    return pads, more


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Means of windows of (batch, channels, *sizes) in 1 to 3 dimensions."""
    strides = strides or [1] * len(kernel_sizes)
    average = _AVERAGES[len(kernel_sizes)]
    pads, more = _pool_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    averages = average(padded(padded(x, pads), more), kernel_sizes, strides)
    # As in torch, elements that only ceil_mode adds never count.
    uncounted = pads if exclude_padding_from_average else more
    if not any(map(any, [*more, *uncounted])):
        return averages
    counted = torch.ones(1, 1, *x.shape[2:])
    counted = padded(counted, pads, 0.0 if exclude_padding_from_average else 1.0)
    return averages / average(padded(counted, more), kernel_sizes, strides)


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Maxima of windows of (batch, channels, *sizes); padding never wins."""
    strides = strides or [1] * len(kernel_sizes)
    for pads in _pool_pads(x, kernel_sizes, strides, pad_type, pad, ceil_mode):
        x = padded(x, pads, -math.inf)
    return _MAXIMA[len(kernel_sizes)](x, kernel_sizes, strides)
