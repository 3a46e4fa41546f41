"""ShuffleNet v1 (Zhang et al. 2017, https://arxiv.org/abs/1707.01083).

Parameter names, and the place of the shuffle, follow the authors' own code
(https://github.com/megvii-model/ShuffleNet-Series): there it stands behind the depthwise
convolution, which is the same, since that convolution works on each channel alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REPEATS = (4, 8, 4)
"""Blocks of each stage."""
WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Channels of the first stage, by groups; each other stage has twice those of the one before it
(table 1 of the paper)."""
STEM_WIDTH = 24
"""Its published multiples are 12, 24, 24 and 48, of stages 0.5, 1, 1.5 and 2 times as wide."""
CLASSIFIER = "classifier.0"


class ShuffleBlock(nn.Module):
    """Grouped 1 x 1 convolution, depthwise convolution, shuffle, grouped 1 x 1 convolution.

    With stride 2 an average pool of the input stands beside it (figure 2 c of the paper).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, groups: int, first: bool) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        inner, made = outputs // 4, outputs - inputs if stride == 2 else outputs
        self.branch_main_1 = nn.Sequential(
            # The stem has too few channels for groups.
            nn.Conv2d(inputs, inner, 1, groups=1 if first else groups, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
        )
        self.branch_main_2 = nn.Sequential(
            nn.Conv2d(inner, made, 1, groups=groups, bias=False), nn.BatchNorm2d(made)
        )
        if stride == 2:
            self.branch_proj = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x` (batch, channels, height, width)."""
        inner = self.branch_main_1(x)
        if self.groups > 1:
            # Channel i of n goes to (i % groups) * n / groups + i // groups.
            inner = F.channel_shuffle(inner, inner.shape[1] // self.groups)
        made = self.branch_main_2(inner)
        if self.stride == 1:
            return F.relu(made + x)
        return torch.cat((self.branch_proj(x), F.relu(made)), 1)


class ShuffleNet(nn.Module):
    """The network: (batch, channels, height, width) to logits (batch, num_classes)."""

    def __init__(
        self,
        num_classes: int,
        *,
        groups: int = 3,
        width_multiplier: float = 1.0,
        small_stem: bool = False,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.groups, self.stem_stride = groups, 1 if small_stem else 2
        unit = 4 * groups  # a quarter of a block's channels is cut into groups
        width = max(unit, round(WIDTHS[groups] * width_multiplier / unit) * unit)
        # A block with stride 2 adds to its input, whose channels the groups must divide as well.
        wanted = STEM_WIDTH * 2.0 ** math.floor(math.log2(width_multiplier))
        stem = min(max(groups, round(wanted / groups) * groups), width - groups)
        self.first_conv = nn.Sequential(
            nn.Conv2d(channels, stem, 3, self.stem_stride, 1, bias=False),
            nn.BatchNorm2d(stem),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        inputs = stem
        for stage, repeats in enumerate(REPEATS):
            outputs = width * 2**stage
            for index in range(repeats):
                first = stage == index == 0
                stride = 2 if index == 0 else 1
                blocks.append(
                    ShuffleBlock(inputs, outputs, stride=stride, groups=groups, first=first)
                )
                inputs = outputs
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Linear(inputs, num_classes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) for `x` (batch, channels, height, width)."""
        x = self.features(self.maxpool(self.first_conv(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

    @staticmethod
    def stage_ends() -> tuple[str, ...]:
        """Paths of the last block of each stage."""
        return tuple(f"features.{sum(REPEATS[: stage + 1]) - 1}" for stage in range(len(REPEATS)))
