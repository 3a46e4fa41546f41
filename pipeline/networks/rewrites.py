"""Exact rewrites of layers that any network may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


def average_conv(pool: nn.AvgPool2d, channels: int) -> nn.Conv2d:
    """The depthwise convolution equal to `pool`; its weights are constants, not parameters.

    Padding must count (`count_include_pad`) or be absent, as it is in ResNeSt for sides that are
    a multiple of 32.
    """
    kernel, padding = int(pool.kernel_size), int(pool.padding)  # type: ignore[arg-type]
    conv = nn.Conv2d(
        channels,
        channels,
        kernel,
        int(pool.stride),  # type: ignore[arg-type]
        padding,
        groups=channels,
        bias=False,
    )
    nn.init.constant_(conv.weight, 1.0 / kernel**2)
    conv.weight.requires_grad_(False)
    return conv


def complement_conv(channels: int) -> nn.Conv2d:
    """`1 - x` as a depthwise 1x1 convolution; its weights are constants, not parameters."""
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
    """`(x / 255 - mean) / std` as a depthwise 1x1 convolution of pixel values 0..255.

    Its weights are constants, not parameters.
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
