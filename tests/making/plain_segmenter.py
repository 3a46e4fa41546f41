"""A segmenter as a user may have one, as small as can be: a path down, one up, and a skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _layer(taken: int, given: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(taken, given, 3, stride, 1, bias=False), nn.BatchNorm2d(given), nn.ReLU()
    )


class Segmenter(nn.Module):
    """Answers at half of the input's sides, or at all of them."""

    def __init__(self, num_classes: int, channels: int, *, whole: bool) -> None:
        super().__init__()
        self.stem = _layer(3, channels, 2)
        self.down = nn.Sequential(
            _layer(channels, 2 * channels, 2), _layer(2 * channels, 2 * channels)
        )
        self.deep = nn.Sequential(
            _layer(2 * channels, 2 * channels, 2), _layer(2 * channels, 2 * channels)
        )
        self.up = _layer(4 * channels, channels)
        self.joined = _layer(2 * channels, channels)
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        middle = self.down(fine)
        coarse = F.interpolate(self.deep(middle), scale_factor=2.0, mode="nearest")
        back = F.interpolate(
            self.up(torch.cat([middle, coarse], 1)), scale_factor=2.0, mode="nearest"
        )
        features = self.joined(torch.cat([fine, back], 1))
        if self.whole:
            features = F.interpolate(features, scale_factor=2.0, mode="nearest")
        return self.head(features)  # type: ignore[no-any-return]


def segmenter(num_classes: int, channels: int = 8, whole: bool = False) -> Segmenter:
    return Segmenter(num_classes, channels, whole=whole)
