"""ResNeSt: split-attention networks (Zhang et al. 2020, https://arxiv.org/abs/2004.08955).

Parameter names follow the paper's own repository, which timm shares, so that both kinds of
checkpoint load without a translation table. Every tensor stays 4-D (batch, channels, height,
width): the network traces, prunes and exports without a reshape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

CLASSIFIER = "fc"
"""Path of the layer that gives the logits."""

Stem = Literal["deep", "small"]


@dataclass(frozen=True, kw_only=True)
class ResNeStConfig:
    """What decides the shape of a ResNeSt.

    `base_width` is the width of one cardinal group at 64 planes (the `64d` of `2s1x64d`),
    `radix` the number of splits (`2s`), `cardinality` the number of groups (`1x`). The first stage
    sees a quarter of the image's side behind the `deep` stem, all of it behind the `small` one.
    `channels` are those of the images. `width_multiplier` scales every stage; widths stay multiples
    of 8.
    """

    block: Literal["bottleneck", "basic"] = "bottleneck"
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    radix: int = 2
    cardinality: int = 1
    base_width: int = 64
    stem: Stem = "deep"
    stem_width: int = 32
    avd: bool = True
    avd_first: bool = False
    width_multiplier: float = 1.0
    num_classes: int = 1000
    channels: int = 3
    dropblock: float = 0.0
    dropout: float = 0.0

    @property
    def expansion(self) -> int:
        """Output channels of a block per plane."""
        return 4 if self.block == "bottleneck" else 1

    def scaled(self, channels: int) -> int:
        """Channels after the width multiplier, a multiple of 8 unless the multiplier is 1."""
        if self.width_multiplier == 1.0:
            return channels
        return max(8, round(channels * self.width_multiplier / 8) * 8)


NAMED: dict[str, ResNeStConfig] = {
    "resnest14": ResNeStConfig(layers=(1, 1, 1, 1)),
    "resnest26": ResNeStConfig(layers=(2, 2, 2, 2)),
    "resnest50": ResNeStConfig(),
    "resnest101": ResNeStConfig(layers=(3, 4, 23, 3), stem_width=64),
    "resnest200": ResNeStConfig(layers=(3, 24, 36, 3), stem_width=64),
    "resnest269": ResNeStConfig(layers=(3, 30, 48, 8), stem_width=64),
    "resnest50_fast_1s1x64d": ResNeStConfig(radix=1, avd_first=True),
    "resnest50_fast_2s1x64d": ResNeStConfig(radix=2, avd_first=True),
    "resnest50_fast_4s1x64d": ResNeStConfig(radix=4, avd_first=True),
    "resnest50_fast_1s2x40d": ResNeStConfig(radix=1, cardinality=2, base_width=40, avd_first=True),
    "resnest50_fast_2s2x40d": ResNeStConfig(radix=2, cardinality=2, base_width=40, avd_first=True),
    "resnest50_fast_4s2x40d": ResNeStConfig(radix=4, cardinality=2, base_width=40, avd_first=True),
    "resnest50_fast_1s4x24d": ResNeStConfig(radix=1, cardinality=4, base_width=24, avd_first=True),
    "resnest50_basic": ResNeStConfig(block="basic", layers=(3, 4, 14, 3)),
}
"""The networks a recipe can name."""


class DropBlock(nn.Module):
    """Drops squares of a feature map while training (Ghiasi et al. 2018); off at probability 0."""

    def __init__(self, probability: float, block_size: int = 3) -> None:
        super().__init__()
        self.probability = probability
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (batch, channels, height, width) with squares set to zero."""
        if self.probability == 0.0 or not self.training:
            return x
        from torchvision.ops import drop_block2d  # loads torch's compiler: two seconds

        size = min(self.block_size, x.shape[2], x.shape[3])
        size -= 1 - size % 2  # torchvision takes odd sizes only
        dropped: Tensor = drop_block2d(x, self.probability, size, training=True)
        return dropped


def global_average(x: Tensor) -> Tensor:
    """Mean over height and width, kept 4-D: (batch, channels, 1, 1)."""
    if x.shape[2:] == (1, 1):
        return x  # converters drop such a mean, and would lose its quantization grid with it
    return x.mean((2, 3), keepdim=True)


def split_attention(splits: list[Tensor], logits: list[Tensor]) -> Tensor:
    """Weighted sum of the splits, the weights a softmax over the splits (paper, equation 2).

    Args:
        splits: radix tensors (batch, channels, height, width).
        logits: radix tensors (batch, channels, 1, 1).
    """
    if len(splits) == 1:
        return splits[0] * torch.sigmoid(logits[0])
    weights = torch.softmax(torch.cat(logits, dim=3), dim=3)
    total = splits[0] * weights[..., :1]
    for r, split in enumerate(splits[1:], start=1):
        total = total + split * weights[..., r : r + 1]
    return total


class SplitAttention(nn.Module):
    """A grouped convolution whose `radix` splits are weighted by attention over the splits."""

    def __init__(
        self,
        channels: int,
        *,
        stride: int,
        radix: int,
        cardinality: int,
        activation: bool = True,
        dropblock: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.radix, self.cardinality = channels, radix, cardinality
        inner = max(channels * radix // 4, 32)
        inner -= inner % cardinality
        wide = channels * radix
        groups = cardinality * radix
        self.conv = nn.Conv2d(channels, wide, 3, stride, 1, groups=groups, bias=False)
        self.bn0 = nn.BatchNorm2d(wide)
        self.drop = DropBlock(dropblock)
        self.act0 = nn.ReLU() if activation else nn.Identity()
        self.fc1 = nn.Conv2d(channels, inner, 1, groups=cardinality)
        self.bn1 = nn.BatchNorm2d(inner)
        self.fc2 = nn.Conv2d(inner, wide, 1, groups=cardinality)

    def logit_channels(self, split: int) -> Tensor:
        """Channels of `fc2` that belong to one split.

        `fc2` lays its output out as (cardinal group, split, channel), the convolution as
        (split, cardinal group, channel); this is the map from the one to the other.
        """
        index = torch.arange(self.channels * self.radix)
        return index.view(self.cardinality, self.radix, -1)[:, split].flatten()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same channels, spatially strided."""
        splits = list(self.act0(self.drop(self.bn0(self.conv(x)))).chunk(self.radix, dim=1))
        pooled = global_average(splits[0])
        for split in splits[1:]:
            pooled = pooled + global_average(split)
        logits = self.fc2(torch.relu(self.bn1(self.fc1(pooled))))
        if self.radix == 1:
            return split_attention(splits, [logits])
        per_split = [logits[:, self.logit_channels(r)] for r in range(self.radix)]
        return split_attention(splits, per_split)


class Block(nn.Module):
    """A residual block: 1x1, split attention, 1x1 (bottleneck) or 3x3, split attention (basic).

    The basic block ends in the split-attention convolution, so its splits keep their sign (no
    ReLU before the sum): a residual branch that can only grow trains badly (He et al. 2016,
    https://arxiv.org/abs/1603.05027, figure 4c).
    """

    def __init__(
        self, in_channels: int, planes: int, stride: int, config: ResNeStConfig, dropblock: float
    ) -> None:
        super().__init__()
        bottleneck = config.block == "bottleneck"
        width = config.scaled(int(planes * config.base_width / 64)) * config.cardinality
        out = config.scaled(planes) * config.expansion
        if not bottleneck:
            width = out
        pooled = config.avd and stride > 1
        self.conv1 = nn.Conv2d(
            in_channels, width, 1 if bottleneck else 3, padding=0 if bottleneck else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.drop1 = DropBlock(dropblock)
        pool = nn.AvgPool2d(3, stride, padding=1) if pooled else nn.Identity()
        self.avd_first = pool if config.avd_first else nn.Identity()
        self.conv2 = SplitAttention(
            width,
            stride=1 if pooled else stride,
            radix=config.radix,
            cardinality=config.cardinality,
            activation=bottleneck,
            dropblock=dropblock,
        )
        self.avd_last = nn.Identity() if config.avd_first else pool
        self.conv3 = nn.Conv2d(width, out, 1, bias=False) if bottleneck else nn.Identity()
        self.bn3 = nn.BatchNorm2d(out) if bottleneck else nn.Identity()
        self.drop3 = DropBlock(dropblock if bottleneck else 0.0)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
                if stride > 1
                else nn.Identity(),
                nn.Conv2d(in_channels, out, 1, bias=False),
                nn.BatchNorm2d(out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out, height / stride, width / stride)."""
        y = self.avd_first(torch.relu(self.drop1(self.bn1(self.conv1(x)))))
        y = self.avd_last(self.conv2(y))
        y = self.drop3(self.bn3(self.conv3(y)))
        return torch.relu(y + self.downsample(x))


def _deep_stem(channels: int, width: int) -> nn.Sequential:
    """Three convolutions, the first with a stride, in place of a 7x7 one; the last is wider."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False),
    )


class ResNeSt(nn.Module):
    """The whole network: images (batch, channels, height, width) to (batch, num_classes) logits."""

    def __init__(self, config: ResNeStConfig) -> None:
        super().__init__()
        self.config = config
        width, deep = config.scaled(config.stem_width), config.stem == "deep"
        channels = 2 * width
        self.conv1 = (
            _deep_stem(config.channels, width)
            if deep
            else nn.Conv2d(config.channels, channels, 3, 1, 1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if deep else nn.Identity()
        for index, (planes, depth) in enumerate(
            zip((64, 128, 256, 512), config.layers, strict=True)
        ):
            # The paper drops blocks in the last two stages only.
            dropblock = config.dropblock if index >= 2 else 0.0
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(Block(channels, planes, stride, config, dropblock))
                channels = config.scaled(planes) * config.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.drop = nn.Dropout(config.dropout)
        self.fc: nn.Module = nn.Linear(channels, config.num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def start_as_identity(self) -> None:
        """Set the scale of every block's last batch normalisation to zero, before training.

        Each block then begins as its shortcut, which trains faster (Goyal et al. 2017,
        https://arxiv.org/abs/1706.02677, section 5.1; `last_gamma` of the official ResNeSt).
        """
        for stage in self.stages():
            for block in stage:
                assert isinstance(block, Block)
                last = block.bn3 if isinstance(block.bn3, nn.BatchNorm2d) else block.conv2.bn0
                nn.init.zeros_(last.weight)

    def stages(self) -> list[nn.Sequential]:
        """The four residual stages in order."""
        return [self.get_submodule(f"layer{i}") for i in range(1, 5)]  # type: ignore[misc]

    def stage_names(self) -> tuple[str, ...]:
        """Module paths of the stages that hold blocks, in order; a form of the network has them."""
        return tuple(f"layer{i}" for i, stage in enumerate(self.stages(), start=1) if len(stage))

    def features(self, x: Tensor) -> Tensor:
        """The last stage's output: (batch, features, height / 32, width / 32).

        Behind a small stem they are an eighth.
        """
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages():
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes)."""
        return self.fc(self.drop(global_average(self.features(x)).flatten(1)))  # type: ignore[no-any-return]


def named(name: str, *, num_classes: int, **overrides: object) -> ResNeSt:
    """Build a named network with random weights; `overrides` replace fields of its config."""
    return ResNeSt(replace(NAMED[name], num_classes=num_classes, **overrides))  # type: ignore[arg-type]
