"""A detector of a user's own: four layers, and maps of a sixteenth of the image's side."""

from __future__ import annotations

import itertools

from torch import Tensor, nn


class PlainDetector(nn.Module):
    """(batch, 3, height, width) to (batch, outputs, height / 16, width / 16)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        widths = (3, 8, 16, 24, 32)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inputs, made, 3, 2, 1, bias=False), nn.BatchNorm2d(made), nn.ReLU()
                )
                for inputs, made in itertools.pairwise(widths)
            )
        )
        self.head = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.head(self.body(x))
        return maps


def detector(num_classes: int) -> nn.Module:
    """What a recipe names."""
    return PlainDetector(num_classes)
