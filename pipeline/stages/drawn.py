"""Pictures of what a run's float model and file make of a few test images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image
from torch import Tensor

from pipeline.report.pictures import Colour, Panel, Pictures, ShownImage
from pipeline.tasks import drawing
from pipeline.tasks.drawn_boxes import drawn_of, with_boxes
from pipeline.tasks.images.boxes import are_boxes
from pipeline.tasks.predictions import Predictions, Shown

_COLOURS = 96
"""Of a photo with boxes: a page holds several, in full."""


def pictures_of(
    run: str, precision: str, predictions: Mapping[str, Predictions], classes: Sequence[str]
) -> Pictures:
    """The pictures of a run; none where what it learns is told in words.

    Args:
        run: its name.
        precision: of its file, in words.
        predictions: by test set.
        classes: names.
    """
    images = tuple(
        ShownImage(run=run, test_set=name, panels=panels)
        for name, found in predictions.items()
        if found.shown is not None
        for panels in _panels(found.shown, precision, classes)
    )
    if not images:
        return Pictures()
    shown = [found.shown for found in predictions.values() if found.shown is not None]
    if any(are_boxes(one.labels) for one in shown):
        return Pictures(images=images)  # names stand beside the boxes
    colours = drawing.palette().tolist()
    return Pictures(
        images=images,
        colours=tuple(
            Colour(name=name, rgb="#" + "".join(f"{level:02x}" for level in colours[row]))
            for row, name in enumerate(classes)
        ),
    )


def _panels(shown: Shown, precision: str, classes: Sequence[str]) -> Iterator[tuple[Panel, ...]]:
    """The panels of each image."""
    if not are_boxes(shown.labels):
        yield from _rows(shown, precision)
        return
    for pixels, *found in zip(
        shown.pixels, shown.labels, shown.float_model, shown.file, strict=True
    ):
        yield tuple(
            Panel(title=title, png=_png(_with_boxes(pixels, rows, classes)))
            for title, rows in zip(("truth", "float", precision), found, strict=True)
        )


def _with_boxes(pixels: Tensor, rows: Tensor, classes: Sequence[str]) -> Image.Image:
    """A photo with boxes, in colours few enough for a page."""
    return with_boxes(drawing.photo(pixels), drawn_of(rows, classes)).quantize(_COLOURS)


def _rows(shown: Shown, precision: str) -> Iterator[tuple[Panel, ...]]:
    """The panels of each image."""
    maps = (shown.labels, shown.float_model, shown.file)
    for pixels, *found in zip(shown.pixels, *maps, strict=True):
        _, before, after = found
        pictures = {
            "image": drawing.photo(pixels),
            **{
                title: drawing.coloured(one)
                for title, one in zip(("truth", "float", precision), found, strict=True)
            },
            "difference": drawing.different(before, after),
        }
        yield tuple(Panel(title=title, png=_png(one)) for title, one in pictures.items())


def _png(picture: Image.Image) -> str:
    content = io.BytesIO()
    # Few colours compress well as they are; a photo is small enough.
    picture.save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode("ascii")
