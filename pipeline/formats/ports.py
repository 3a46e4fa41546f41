"""What a file takes and gives: its inputs and outputs by name, type and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Port:
    """A tensor or image that goes in or comes out.

    Attributes:
        name: in the file.
        shape: None stands for any number of images.
        dtype: of its elements, as numpy names it.
        kind: `image` where a platform's own type of image is given, 8-bit RGB; `dictionary` where
            numbers come by the names of their classes; else a tensor.
        scale: of the grid of an integer tensor, real = scale * (integer - zero_point); None
            where integers are plain numbers, and for floats.
        zero_point: of that grid.
        channels_last: whether four dimensions are height, width and channels behind the images;
            None where 1 or 3 channels behind tell it.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    kind: Literal["tensor", "image", "dictionary"] = "tensor"
    scale: float | None = None
    zero_point: int | None = None
    channels_last: bool | None = None

    @property
    def layout(self) -> str:
        """NCHW or NHWC, of an image; empty for what has no four dimensions."""
        if len(self.shape) != 4:
            return ""
        last = self.shape[3] in (1, 3) if self.channels_last is None else self.channels_last
        return "NHWC" if last else "NCHW"

    @property
    def words(self) -> str:
        """Name, type and shape, such as `image`, float32 1 x 3 x 224 x 224 (NCHW)."""
        shape = " x ".join("N" if size is None else str(size) for size in self.shape)
        layout = f" ({self.layout})" if self.layout else ""
        what = {"image": "an image of the platform", "dictionary": "numbers by class,"}.get(
            self.kind, self.dtype
        )
        return f"{self.name}, {what} {shape}{layout}"

    @property
    def height(self) -> int:
        """Of an image, in pixels."""
        return int(self.shape[1 if self.layout == "NHWC" else 2] or 0)

    @property
    def width(self) -> int:
        """Of an image, in pixels."""
        return int(self.shape[2 if self.layout == "NHWC" else 3] or 0)

    @property
    def channels(self) -> int:
        """Of an image: 3 for red, green and blue, 1 for grey."""
        return int(self.shape[3 if self.layout == "NHWC" else 1] or 0)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The one input and the one output of a file.

    Attributes:
        input: what it takes.
        output: what it gives.
        ios: the oldest iOS that it says it runs on; None in formats that have no such word.
    """

    input: Port
    output: Port
    ios: int | None = None
