"""The shape of what a network takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

LEAST, MOST = 8, 2048
"""Of a side, in pixels."""


@dataclass(frozen=True, kw_only=True)
class InputShape:
    """Of one image.

    Attributes:
        channels: 3 for red, green and blue, 1 for grey.
        height: in pixels.
        width: in pixels.
    """

    channels: int = 3
    height: int
    width: int

    def __str__(self) -> str:
        """Height and width, for people."""
        return f"{self.height} x {self.width}"

    @property
    def sides(self) -> int | tuple[int, int]:
        """Height and width as a recipe has them: one number for a square."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def shorter(self) -> int:
        """The shorter side, in pixels."""
        return min(self.height, self.width)

    @property
    def area(self) -> int:
        """Pixels of one channel."""
        return self.height * self.width

    def batch(self, images: int) -> tuple[int, int, int, int]:
        """The shape of so many images: (images, channels, height, width)."""
        return images, self.channels, self.height, self.width

    def within(self, margin: tuple[int, int]) -> InputShape:
        """The shape with so many rows above and below, and columns left and right."""
        rows, columns = margin
        return replace(self, height=self.height + 2 * rows, width=self.width + 2 * columns)

    def scaled(self, shorter: int) -> InputShape:
        """The shape with another shorter side; the longer one is rounded."""
        height, width = (round(side * shorter / self.shorter) for side in (self.height, self.width))
        return replace(self, height=height, width=width)


def square(side: int, channels: int = 3) -> InputShape:
    """The shape of a square image."""
    return InputShape(channels=channels, height=side, width=side)
