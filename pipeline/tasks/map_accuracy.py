"""How well the class of every pixel is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import model_validator

from pipeline.base.record import Count, Positive, Record, Share
from pipeline.tasks.label_accuracy import mean_of


class MapAccuracy(Record):
    """How well the classes of the pixels of `images` test images are told; void counts nowhere.

    The intersection over union of a class is TP / (TP + FP + FN), counted over the pixels of all
    images together (Everingham et al. 2010, "The Pascal Visual Object Classes (VOC) Challenge",
    section 4.3).

    Attributes:
        mean_iou: the mean over the classes that some pixel has or is given.
        pixel_accuracy: share of the pixels whose own class was named.
        images: of the test set.
        iou: of every class, in order; None of one that no pixel has and none is given.
        pixels: that have each class.
    """

    FIGURE: ClassVar[str] = "mean IoU"
    """Name of the primary figure, which guard, budgets and charts look at."""
    PAIRED: ClassVar[str] = "pixel accuracy"
    """Name of the figure that what became of single images tests."""
    SAME: ClassVar[str] = "same class of a pixel"
    """What two answers to an image have in common where they agree."""
    THINGS: ClassVar[tuple[str, str]] = ("class", "classes")
    """What is told apart: one, and several."""
    CHANGES: ClassVar[tuple[str, str, str, str]] = (
        *("all pixels right in both", "fewer pixels right", "more pixels right"),
        "as many right, not all",
    )
    """What `Changes` counts: kept, lost, gained, neither."""

    EACH: ClassVar[str] = "IoU"
    """What `each` says of a class."""
    COUNTED: ClassVar[str] = "pixels"
    """What `counts` are of."""

    mean_iou: Share
    pixel_accuracy: Share
    images: Positive
    iou: tuple[Share | None, ...]
    pixels: tuple[Count, ...]

    @property
    def figure(self) -> float:
        """The primary figure, a share: more is better."""
        return self.mean_iou

    @property
    def each(self) -> tuple[float | None, ...]:
        """The intersection over union of every class; None of one that no pixel has or is given."""
        return self.iou

    @property
    def counts(self) -> tuple[int, ...]:
        """Pixels that have each class."""
        return self.pixels

    @property
    def columns(self) -> dict[str, float]:
        """Every figure by the head of its column in a report, the primary one first."""
        return {self.FIGURE: self.mean_iou, self.PAIRED: self.pixel_accuracy}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.iou) != len(self.pixels):
            raise ValueError(f"iou: got {len(self.iou)} classes, and pixels of {len(self.pixels)}")
        if any(one is None and count for one, count in zip(self.iou, self.pixels, strict=True)):
            raise ValueError("iou: must be that of every class that a pixel has")
        if self.mean_iou != mean_of(self.iou):
            raise ValueError(f"mean_iou: got {self.mean_iou:g}; must be the mean of iou")
        return self


def map_accuracy(
    counts: Sequence[int], named: Sequence[int], right: Sequence[int], images: int
) -> MapAccuracy | None:
    """The metric of pixels that were counted by class; None where no pixel has a class.

    Args:
        counts: pixels that have each class.
        named: pixels that each was named for, of those that have any.
        right: pixels that have it and were given it.
        images: that they are of.
    """
    unions = [one + two - both for one, two, both in zip(counts, named, right, strict=True)]
    iou = tuple(both / union if union else None for both, union in zip(right, unions, strict=True))
    mean = mean_of(iou)
    if mean is None:
        return None
    return MapAccuracy(
        mean_iou=mean,
        pixel_accuracy=sum(right) / sum(counts) if sum(counts) else 0.0,
        images=images,
        iou=iou,
        pixels=tuple(counts),
    )
