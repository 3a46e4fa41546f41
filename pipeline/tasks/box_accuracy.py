"""How well the objects of images are found."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from pipeline.base.record import Count, Positive, Record, Share


class BoxAccuracy(Record):
    """How well the objects of `images` test images are found.

    Attributes:
        ap50: average precision where a box that overlaps an object's by half has found it, the mean
            over the classes that an image has.
        ap: the mean of average precisions at overlaps of 0.50, 0.55, ... to 0.95, likewise.
        recall: share of the objects that are found by boxes above the threshold, by half.
        images: of the test set.
        by_class: average precision at an overlap of half by class, in order; None of one that no
            image has.
        objects: by class.
    """

    FIGURE: ClassVar[str] = "AP50"
    """Name of the primary figure, which guard, budgets and charts look at."""
    PAIRED: ClassVar[str] = "recall"
    """Name of the figure that what became of single images tests."""
    SAME: ClassVar[str] = "same boxes"
    """What two answers to an image have in common where they agree."""
    THINGS: ClassVar[tuple[str, str]] = ("class", "classes")
    """What is told apart: one, and several."""
    CHANGES: ClassVar[tuple[str, str, str, str]] = (
        *("all objects found in both", "fewer objects found", "more objects found"),
        "as many found, not all",
    )
    """What `Changes` counts: kept, lost, gained, neither."""
    EACH: ClassVar[str] = "AP50"
    """What `each` says of a class."""
    COUNTED: ClassVar[str] = "objects"
    """What `counts` are of."""

    ap50: Share
    ap: Share
    recall: Share
    images: Positive
    by_class: tuple[Share | None, ...]
    objects: tuple[Count, ...]

    @property
    def figure(self) -> float:
        """The primary figure, a share: more is better."""
        return self.ap50

    @property
    def each(self) -> tuple[float | None, ...]:
        """AP50 of every class; None of one that no image has."""
        return self.by_class

    @property
    def counts(self) -> tuple[int, ...]:
        """Objects of each class."""
        return self.objects

    @property
    def columns(self) -> dict[str, float]:
        """Every figure by the head of its column in a report, the primary one first."""
        return {self.FIGURE: self.ap50, "AP": self.ap, self.PAIRED: self.recall}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if [one is None for one in self.by_class] != [count == 0 for count in self.objects]:
            raise ValueError("by_class: must be of the classes that an image has, and of no other")
        return self
