"""Convolutions that train fast on a CPU where maps are small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_POINTWISE_POSITIONS = 16
_NEIGHBOURHOOD_SIDE = 2


class Convolution(nn.Conv2d):
    """A convolution that, in training on a CPU, is one matrix product where maps are small.

    oneDNN spends its time on laying out the weights there: 1024 to 2048 channels of 256 maps of
    one pixel take 92 ms forward and backward, and as a product 2 ms (bfloat16, two cores; the
    forward pass alone 17 ms and 0.6 ms). The numbers are the same but for the order in which
    they are added. Evaluation and tracing see a plain convolution always.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in channels, height, width) to (batch, out channels, height', width')."""
        dense = self.stride == (1, 1) and self.dilation == (1, 1)
        traced = torch.compiler.is_compiling()
        if not self.training or traced or x.device.type != "cpu" or not dense:
            return super().forward(x)
        height, width = x.shape[2:]
        pointwise = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1
        if pointwise and height * width <= _POINTWISE_POSITIONS:
            return _pointwise(x, self.weight, self.bias)
        padded = self.kernel_size == (3, 3) and self.padding == (1, 1) and self.bias is None
        if padded and max(height, width) <= _NEIGHBOURHOOD_SIDE:
            return _neighbourhood(x, self.weight, self.groups)
        return super().forward(x)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1 x 1 convolution as a product of pixels and weights."""
    y = functional.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias)
    return y.permute(0, 3, 1, 2)


def _neighbourhood(x: Tensor, weight: Tensor, groups: int) -> Tensor:
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
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)
