"""ShiftResNet (Wu et al. 2018, https://arxiv.org/abs/1711.08141), for small images.

A shift moves every channel by a pixel in a direction of its own, or not at all; 1 x 1 convolutions
before and behind it do the rest. Runtimes of phones have no such operation, but all of them have
fast depthwise convolutions in int8, so that a shift is one here: its kernel has a single 1.
Structure and names follow the authors' code (https://github.com/alvinwan/shiftresnet-cifar), but
for the stride, which is the shift's here: skipping pixels before a 1 x 1 convolution is skipping
them behind it, with a quarter of the work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)
"""Channels of the three stages."""
KERNEL = 3
CLASSIFIER = "linear"
REPEATS = {"shiftresnet20": 3, "shiftresnet56": 9, "shiftresnet110": 18}
"""Blocks of every stage, by name."""


def shift(channels: int, stride: int) -> nn.Conv2d:
    """A depthwise convolution that moves channel i in direction i % 9; it is not trained.

    As many channels go in each direction as in every other (section 3.1 of the paper); which ones
    does not matter between two 1 x 1 convolutions.
    """
    conv = nn.Conv2d(channels, channels, KERNEL, stride, KERNEL // 2, groups=channels, bias=False)
    places = torch.arange(channels) % KERNEL**2
    one_hot = F.one_hot(places, KERNEL**2).float()
    conv.weight = nn.Parameter(one_hot.reshape(channels, 1, KERNEL, KERNEL), requires_grad=False)
    return conv


class ShiftBlock(nn.Module):
    """1 x 1 convolution, shift, 1 x 1 convolution, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = outputs * expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shift2 = shift(inner, stride)
        self.conv2 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x` (batch, channels, height, width)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(self.shift2(inner))) + self.shortcut(x))


class ShiftResNet(nn.Module):
    """The network: (batch, channels, height, width) to logits (batch, num_classes)."""

    def __init__(
        self,
        num_classes: int,
        *,
        repeats: int = 3,
        expansion: int = 3,
        width_multiplier: float = 1.0,
        channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [max(8, round(width * width_multiplier / 8) * 8) for width in WIDTHS]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        for number, width in enumerate(widths, start=1):
            blocks = []
            for index in range(repeats):
                stride = 2 if number > 1 and index == 0 else 1
                blocks.append(ShiftBlock(inputs, width, stride=stride, expansion=expansion))
                inputs = width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) for `x` (batch, channels, height, width)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in self.stage_names():
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    @staticmethod
    def stage_names() -> tuple[str, ...]:
        """Paths of the stages."""
        return tuple(f"layer{number}" for number in range(1, len(WIDTHS) + 1))
