"""A network as a user may have one, as small as can be: whole commands take seconds on it.

Named by `PLAIN_MODEL` of `tests.making.recipes`.
"""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(inner)) + x)  # type: ignore[no-any-return]


class Plain(nn.Module):
    """A stem to a quarter of the side, two blocks, a pool and a classifier."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(2)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.pool(self.stem(x))).mean((2, 3)))  # type: ignore[no-any-return]


def plain(num_classes: int, channels: int = 16) -> Plain:
    return Plain(num_classes, channels)
