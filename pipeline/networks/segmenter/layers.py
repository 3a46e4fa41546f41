"""Layers of decoders."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def conv_norm_relu(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    """A convolution that keeps the size of the image, batch normalisation and ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def separable(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """A depthwise 3 x 3 convolution and one of one pixel, each with normalisation and ReLU."""
    each = nn.Conv2d(
        inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False
    )
    return nn.Sequential(
        each, nn.BatchNorm2d(inputs), nn.ReLU(), *conv_norm_relu(inputs, outputs, 1)
    )


def enlarged(x: Tensor, factor: int, mode: str = "bilinear") -> Tensor:
    """An image with `factor` times as many rows and columns; corners are not aligned."""
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=float(factor), mode=mode)
