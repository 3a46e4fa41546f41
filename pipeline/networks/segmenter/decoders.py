"""From the images of a backbone to one that logits are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.networks.segmenter.layers import conv_norm_relu, enlarged, separable
from pipeline.networks.segmenter.maps import Maps

RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Of atrous spatial pyramid pooling, by the stride of its image (Chen et al. 2017, section 4.2)."""
_EARLY_CHANNELS = 48
"""Of what DeepLabV3+ takes of the early image (Chen et al. 2018, table 1)."""


class UNet(nn.Module):
    """Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597), on a backbone.

    The smallest image is made twice as large, put beside the earlier one of that size, and
    convolved twice, until it is at the stride that is asked for.
    """

    def __init__(self, maps: Maps, stride: int, channels: int) -> None:
        """There are `channels` at the end, and twice as many before each enlarging."""
        super().__init__()
        self._first = maps.at(stride)
        inputs = maps.channels[-1]
        self.blocks = nn.ModuleList()
        for place in range(len(maps.strides) - 2, self._first - 1, -1):
            outputs = channels * maps.strides[place] // stride
            first = conv_norm_relu(inputs + maps.channels[place], outputs)
            self.blocks.append(nn.Sequential(*first, *conv_norm_relu(outputs, outputs)))
            inputs = outputs
        self.channels = inputs

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Images of the backbone to (batch, channels, height, width)."""
        x: Tensor = maps[-1]
        beside = list(reversed(maps[self._first : -1]))
        for block, early in zip(self.blocks, beside, strict=True):
            x = block(torch.cat([enlarged(x, 2, "nearest"), early], 1))
        return x


class FPN(nn.Module):
    """A feature pyramid (Lin et al. 2017), its levels made one (Kirillov et al. 2019, figure 3).

    https://arxiv.org/abs/1612.03144, https://arxiv.org/abs/1901.02446
    """

    def __init__(self, maps: Maps, stride: int, channels: int) -> None:
        """There are `channels` in every level, and at the end."""
        super().__init__()
        self._first = maps.at(stride)
        strides = maps.strides[self._first :]
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, channels, 1) for width in maps.channels[self._first :]
        )
        # A block before each time that a level is made twice as large, and one without.
        blocks = [max(1, (one // stride).bit_length() - 1) for one in strides]
        self.levels = nn.ModuleList(
            nn.ModuleList(conv_norm_relu(channels, channels) for _ in range(count))
            for count in blocks
        )
        self.channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Images of the backbone to (batch, channels, height, width)."""
        lateral = [one(x) for one, x in zip(self.laterals, maps[self._first :], strict=True)]
        for place in range(len(lateral) - 2, -1, -1):
            lateral[place] = lateral[place] + enlarged(lateral[place + 1], 2, "nearest")
        found = []
        for place, (level, x) in enumerate(zip(self.levels, lateral, strict=True)):
            for block in level:  # type: ignore[attr-defined]
                x = enlarged(block(x), 2 if place else 1)
            found.append(x)
        whole: Tensor = found[0]
        for x in found[1:]:
            whole = whole + x
        return whole


class DeepLabV3(nn.Module):
    """Chen et al. 2017 (https://arxiv.org/abs/1706.05587), with torchvision's atrous pooling."""

    def __init__(self, maps: Maps, stride: int, channels: int) -> None:
        """The last image, which is at `stride`, is decoded to `channels`."""
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPP

        self.aspp = ASPP(maps.channels[-1], RATES[stride], channels)
        self.last = conv_norm_relu(channels, channels)
        self.channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Images of the backbone to (batch, channels, height, width)."""
        found: Tensor = self.last(self.aspp(maps[-1]))
        return found


class DeepLabV3Plus(nn.Module):
    """Chen et al. 2018 (https://arxiv.org/abs/1802.02611), its convolutions depthwise separable."""

    def __init__(self, maps: Maps, stride: int, channels: int) -> None:
        """The last image is decoded to `channels`, with the help of the early one at `stride`."""
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPP

        self._early, last = maps.at(stride), maps.strides[-1]
        self._factor = last // stride
        self.aspp = ASPP(maps.channels[-1], RATES[last], channels)
        for place, rate in enumerate(RATES[last], start=1):
            self.aspp.convs[place] = separable(maps.channels[-1], channels, rate)
        self.early = conv_norm_relu(maps.channels[self._early], _EARLY_CHANNELS, 1)
        both = channels + _EARLY_CHANNELS
        self.last = nn.Sequential(*separable(both, channels), *separable(channels, channels))
        self.channels = channels

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Images of the backbone to (batch, channels, height, width)."""
        large = enlarged(self.aspp(maps[-1]), self._factor)
        found: Tensor = self.last(torch.cat([large, self.early(maps[self._early])], 1))
        return found


DECODERS = {"unet": UNet, "fpn": FPN, "deeplabv3": DeepLabV3, "deeplabv3plus": DeepLabV3Plus}
"""By `model.name`."""
