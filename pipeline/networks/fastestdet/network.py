"""FastestDet: a ShuffleNetV2 detector that answers on one map, at a sixteenth of the image's side.

Parameter names follow the authors' own code (https://github.com/dog-qiuqiu/FastestDet). The
backbone is ShuffleNetV2 (Ma et al. 2018, https://arxiv.org/abs/1807.11164), whose block is given
every second channel and leaves the others as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REPEATS = (4, 8, 4)
"""Blocks of each stage."""
WIDTHS = (48, 96, 192)
"""Channels of each stage; half of them come out of a block's branch."""
STEM_WIDTH = 24
STRIDE = 16
"""Pixels of the image by a place of the map; the last stage has twice as many."""
BOX_VALUES = 4
"""Middle and sides of a box, two numbers each."""


def _normed(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution and its batch normalisation."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class ShuffleV2Block(nn.Module):
    """1 x 1 convolution, depthwise convolution, 1 x 1 convolution, beside what is left as it is.

    With stride 2 all channels go through both branches (figure 3 d of the paper).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        inner = outputs // 2
        made = outputs - inputs
        self.branch_main = nn.Sequential(
            *_normed(inputs, inner),
            nn.ReLU(inplace=True),
            *_normed(inner, inner, 3, stride=stride, groups=inner),
            *_normed(inner, made),
            nn.ReLU(inplace=True),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *_normed(inputs, inputs, 3, stride=2, groups=inputs),
                *_normed(inputs, inputs),
                nn.ReLU(inplace=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output for `x` (batch, channels, height, width)."""
        if self.stride == 2:
            return torch.cat((self.branch_proj(x), self.branch_main(x)), 1)
        # Channels 0, 2, 4, ... are left, 1, 3, 5, ... go through the branch.
        kept, given = F.channel_shuffle(x, x.shape[1] // 2).chunk(2, 1)
        return torch.cat((kept, self.branch_main(given)), 1)


class ShuffleNetV2(nn.Module):
    """The backbone: (batch, channels, height, width) to its three stages' outputs."""

    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(
            *_normed(channels, STEM_WIDTH, 3, stride=2), nn.ReLU(inplace=True)
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = STEM_WIDTH
        for stage, (repeats, outputs) in enumerate(zip(REPEATS, WIDTHS, strict=True), 2):
            blocks = [ShuffleV2Block(inputs, outputs, stride=2)]
            blocks += [ShuffleV2Block(outputs // 2, outputs, stride=1) for _ in range(repeats - 1)]
            setattr(self, f"stage{stage}", nn.Sequential(*blocks))
            inputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stages' outputs, at an eighth, a sixteenth and a 32nd of the side of `x`."""
        first = self.stage2(self.maxpool(self.first_conv(x)))
        second = self.stage3(first)
        return first, second, self.stage4(second)


class _Joined(nn.Module):
    """A 1 x 1 convolution, normalised, with a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*_normed(inputs, outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv1x1(x)
        return made


class Branches(nn.Module):
    """One, two and three depthwise convolutions side by side, added to what they read."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

        def deep(count: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [*_normed(outputs, outputs, 5, groups=outputs), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        self.Conv1x1 = _Joined(inputs, outputs)
        self.S1, self.S2, self.S3 = deep(1), deep(2), deep(3)
        self.output = nn.Sequential(*_normed(3 * outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of `outputs` channels for `x` (batch, inputs, height, width)."""
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat((self.S1(x), self.S2(x), self.S3(x)), 1)))


class Head(nn.Module):
    """A depthwise and a 1 x 1 convolution; the second has no ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(
            *_normed(inputs, inputs, 5, groups=inputs),
            nn.ReLU(inplace=True),
            *_normed(inputs, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the raw numbers (batch, outputs, height, width)."""
        made: Tensor = self.conv5x5(x)
        return made


class Heads(nn.Module):
    """Whether there is an object, its box and its class, for every place."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv1x1 = _Joined(inputs, inputs)
        self.obj_layers = Head(inputs, 1)
        self.reg_layers = Head(inputs, BOX_VALUES)
        self.cls_layers = Head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 1 + 4 + classes, height, width)."""
        x = self.conv1x1(x)
        return torch.cat((self.obj_layers(x), self.reg_layers(x), self.cls_layers(x)), 1)


class FastestDet(nn.Module):
    """The network: (batch, channels, height, width) to maps (batch, 1 + 4 + classes, h, w).

    The maps are a sixteenth of the image's sides. They are raw: what becomes of them is not part of
    the network (`pipeline.tasks.cells`).
    """

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.backbone = ShuffleNetV2(channels)
        self.avg_pool = nn.AvgPool2d(3, 2, 1)
        self.SPP = Branches(sum(WIDTHS), WIDTHS[1])
        self.detect_head = Heads(WIDTHS[1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the raw maps for `x`, whose sides are multiples of 32."""
        first, second, third = self.backbone(x)
        third = F.interpolate(third, scale_factor=2.0, mode="nearest")
        joined = torch.cat((self.avg_pool(first), second, third), 1)
        maps: Tensor = self.detect_head(self.SPP(joined))
        return maps

    @staticmethod
    def stage_ends() -> tuple[str, ...]:
        """Paths of the last block of each stage of the backbone."""
        return tuple(f"backbone.stage{n}.{repeats - 1}" for n, repeats in enumerate(REPEATS, 2))
