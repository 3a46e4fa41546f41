"""Exact rewrites of layers that any network may use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError


def adds_windows(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]
) -> bool:
    """Whether `ceil_mode` gives a pool more windows than are whole, in any direction.

    Args:
        sizes: of the image, height and width.
        kernel: of the window; one number stands for both, here and below.
        strides: of the window; none stands for those of the kernel.
        pads: before and after the image.
    """
    both = ((v[0], v[-1]) for v in (kernel, strides or kernel, pads))
    for size, extent, stride, pad in zip(sizes, *both, strict=True):
        room = size + 2 * pad - extent
        # A window must begin in the image or in the padding before it.
        if room % stride and (room // stride + 1) * stride < size + pad:
            return True
    return False


class WholeWindows(nn.Conv2d):
    """A convolution in the place of a pool with `ceil_mode`, which it is where windows fit."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, where no window of the pool would stand over the edge.

        Raises:
            InputError: one would; such a window is of fewer elements, which a convolution is not.
        """
        pads = [int(pad) for pad in self.padding]
        if adds_windows(x.shape[2:], self.kernel_size, self.stride, pads):
            raise InputError(
                f"average pool {self.kernel_size}, stride {self.stride}, ceil_mode: gives windows "
                f"over the edge of {tuple(x.shape[2:])}, which no convolution does; change "
                "model.input_size so that they fit"
            )
        return super().forward(x)


def average_conv(pool: nn.AvgPool2d, channels: int) -> nn.Conv2d:
    """The depthwise convolution equal to `pool`; its weights are constants, not parameters.

    before: x -> AvgPool2d(k) -> y
    after:  x -> Conv2d(k, groups=channels, every weight 1 / k^2) -> y

    Raises:
        InputError: padding that does not count (`count_include_pad`): at the edges the pool
            divides by fewer elements.
    """
    kernel, stride, padding = map(both, (pool.kernel_size, pool.stride, pool.padding))
    if any(padding) and not pool.count_include_pad:
        raise InputError(
            f"average pool {kernel}, padding {padding}: does not count its padding, so that it is "
            "no convolution; give it count_include_pad, or no padding"
        )
    kind = WholeWindows if pool.ceil_mode else nn.Conv2d
    conv = kind(channels, channels, kernel, stride, padding, groups=channels, bias=False)
    nn.init.constant_(conv.weight, 1.0 / (pool.divisor_override or kernel[0] * kernel[1]))
    conv.weight.requires_grad_(False)
    return conv


def both(given: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width of what one number may stand for."""
    return (given, given) if isinstance(given, int) else (given[0], given[-1])


def complement_conv(channels: int) -> nn.Conv2d:
    """`1 - x` as a depthwise 1x1 convolution; its weights are constants, not parameters.

    before: x -> 1 - x -> y
    after:  x -> Conv2d(1, groups=channels, every weight -1, every bias 1) -> y
    """
    conv = nn.Conv2d(channels, channels, 1, groups=channels)
    conv.requires_grad_(False)
    nn.init.constant_(conv.weight, -1.0)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, 1.0)
    return conv


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Mean and standard deviation per channel of pixels on the scale 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]


def normalize_conv(normalization: Normalization) -> nn.Conv2d:
    """Normalisation as a depthwise 1x1 convolution of pixel values 0..255.

    Its weights are constants, not parameters.

    before: x -> (x / 255 - mean) / std -> y
    after:  x -> Conv2d(1, groups=channels, weights 1 / (255 std), biases -mean / std) -> y
    """
    mean, std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (normalization.mean, normalization.std)
    )
    conv = nn.Conv2d(len(mean), len(mean), 1, groups=len(mean))
    conv.requires_grad_(False)
    assert conv.bias is not None
    conv.weight.copy_((1 / (255 * std))[:, None, None, None])
    conv.bias.copy_(-mean / std)
    return conv


def with_normalization(model: nn.Module, normalization: Normalization | None) -> nn.Module:
    """A copy of a network; with a normalisation it takes pixel values 0..255.

        (image - mean) / std -> network      becomes      image -> normalize -> network

    By a hook, so that every layer keeps its path.
    """
    copied = copy.deepcopy(model)
    if normalization is not None:
        normalize = normalize_conv(normalization)
        copied.add_module("normalize", normalize.to(next(copied.parameters())))

        copied.register_forward_pre_hook(_normalized)
    return copied


def _normalized(model: nn.Module, images: tuple[Tensor]) -> tuple[Tensor]:
    return (model.get_submodule("normalize")(images[0]),)
