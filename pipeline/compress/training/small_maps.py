"""Convolutions of small maps as matrix products, which a CPU trains several times as fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base.replacing import Replacing

_CONVOLUTIONS = (torch.conv2d, torch.ops.aten.conv2d.default)
_POINTWISE_POSITIONS = 16
_NEIGHBOURHOOD_SIDE = 2
Sides = int | Sequence[int]
"""One number for height and width, or one of each, as torch takes them."""


class ByProducts(Replacing):
    """Inside, convolutions on a CPU are matrix products where their maps are small.

    oneDNN spends its time on laying out the weights there: 1024 to 2048 channels of 256 maps of
    one pixel take 92 ms forward and backward, and as a product 2 ms (bfloat16, two cores; the
    forward pass alone 17 ms and 0.6 ms). The numbers are the same but for the order in which
    they are added. It serves networks of modules and exported graphs alike.

    Where no gradient is wanted, as of a teacher, convolutions stay as they are: they are as fast
    in float32 and eight times as fast in bfloat16 (ResNeSt-50, 128 images of 32 x 32, one thread
    with AVX-512 BF16: 2.36 s by products, 0.28 s without; 0.45 s in float32 either way).
    """

    def __init__(self) -> None:
        super().__init__({plain: partial(_convolution, plain) for plain in _CONVOLUTIONS})


def _convolution(
    plain: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
) -> Tensor:
    """What `plain` gives for these arguments, which are those of `torch.conv2d`."""
    height, width = x.shape[2:]
    kernel, dense = weight.shape[2:], _pair(stride) == _pair(dilation) == (1, 1)
    if x.device.type == "cpu" and dense and torch.is_grad_enabled():
        pointwise = kernel == (1, 1) and _pair(padding) == (0, 0) and groups == 1
        if pointwise and height * width <= _POINTWISE_POSITIONS:
            return _pointwise(x, weight, bias)
        padded = kernel == (3, 3) and _pair(padding) == (1, 1) and groups < x.shape[1]
        if padded and max(height, width) <= _NEIGHBOURHOOD_SIDE:
            return _neighbourhood(x, weight, bias, groups)
    return plain(x, weight, bias, stride, padding, dilation, groups)


def _pair(sides: Sides | str) -> tuple[int, ...] | str:
    """Height's and width's; one number, bare or in a sequence, stands for both."""
    if isinstance(sides, str):
        return sides
    each = (sides,) if isinstance(sides, int) else tuple(sides)
    return each * 2 if len(each) == 1 else each


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 convolution as a product of pixels and weights."""
    y = functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return y.permute(0, 3, 1, 2)


def _neighbourhood(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """A padded 3 x 3 convolution as a product of every pixel's neighbourhood and the kernel."""
    height, width = x.shape[2:]
    if height == width == 1:  # all neighbours are padding
        seen, kernel = x.permute(0, 2, 3, 1)[:, :, :, None], weight[..., 1:2, 1:2]
    else:
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        taps = [(i, j) for i in range(3) for j in range(3)]
        seen = torch.stack([padded[:, i : i + height, j : j + width] for i, j in taps], dim=3)
        kernel = weight
    kernels = kernel.permute(0, 2, 3, 1).flatten(1)  # out channels, (tap, in channels of a group)
    parts = [
        functional.linear(part.flatten(3), its_kernels)
        for part, its_kernels in zip(seen.chunk(groups, dim=-1), kernels.chunk(groups), strict=True)
    ]
    y = torch.cat(parts, dim=-1)
    return (y if bias is None else y + bias).permute(0, 3, 1, 2)
