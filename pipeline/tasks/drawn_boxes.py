"""Pictures of boxes: each class in a colour of its own, always the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from pipeline.tasks.drawing import palette
from pipeline.tasks.images.boxes import there

_LARGE = 320
"""Pixels that a picture's longer side has at least, so that boxes and their names can be told."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One box.

    Attributes:
        number: of its class, which picks the colour.
        title: beside it.
        sides: left, top, right, bottom, shares of the image.
    """

    number: int
    title: str
    sides: tuple[float, ...]


def drawn_of(rows: Tensor, classes: Sequence[str]) -> list[Drawn]:
    """The boxes of one image's rows [M, 6], of targets or of what was found; scores are shown."""
    found = []
    for *sides, number, score in rows[there(rows)].tolist():
        title = classes[int(number)] + (f" {score:.2f}" if score else "")
        found.append(Drawn(number=int(number), title=title, sides=tuple(sides)))
    return found


def with_boxes(picture: Image.Image, boxes: Iterable[Drawn]) -> Image.Image:
    """A picture, enlarged where it is small, with boxes on it."""
    times = max(1, round(_LARGE / max(picture.size)))
    size = (picture.width * times, picture.height * times)
    found = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    pen, colours = ImageDraw.Draw(found), palette()
    for box in boxes:
        red, green, blue = (int(level) for level in colours[1 + box.number % 254])
        left, top, right, bottom = (
            round(min(max(side, 0.0), 1.0) * (length - 1))
            for side, length in zip(box.sides, 2 * found.size, strict=True)
        )
        pen.rectangle((left, top, right, bottom), outline=(red, green, blue), width=2)
        place = (left + 3, top + 1)
        pen.rectangle(pen.textbbox(place, box.title), fill=(red, green, blue))
        bright = 299 * red + 587 * green + 114 * blue > 128_000
        pen.text(place, box.title, fill=(0, 0, 0) if bright else (255, 255, 255))
    return found
