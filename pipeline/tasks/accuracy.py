"""How many images were classified right: accuracy, confusion and changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from pydantic import model_validator

from pipeline.base.record import Count, MeasuredRecord, Positive, Record, Share
from pipeline.tasks.box_accuracy import BoxAccuracy
from pipeline.tasks.label_accuracy import LabelAccuracy
from pipeline.tasks.map_accuracy import MapAccuracy


class Confusion(Record):
    """Which class was named for the images of which class, over one test set.

    Attributes:
        images: of the test set.
        cells: (class, class that was named, images), in order; pairs without an image are left
            out, so that a thousand classes take thousands of cells and not a million.
    """

    images: Positive
    cells: tuple[tuple[Count, Count, Positive], ...]

    @property
    def right(self) -> int:
        """Images whose own class was named."""
        return sum(number for true, named, number in self.cells if true == named)

    def by_class(self, classes: int) -> list[tuple[int, int]]:
        """For every class, the images whose class was named, and all of its images."""
        right, images = Counter[int](), Counter[int]()
        for true, named, number in self.cells:
            images[true] += number
            right[true] += number * (true == named)
        return [(right[one], images[one]) for one in range(classes)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        pairs = [(true, named) for true, named, _ in self.cells]
        if pairs != sorted(set(pairs)):
            raise ValueError("cells: must be in order, every pair of classes once")
        counted = sum(number for _, _, number in self.cells)
        if counted != self.images:
            raise ValueError(f"cells: hold {counted} images, of {self.images}")
        return self


def confusion_of(labels: Sequence[int], named: Sequence[int]) -> Confusion:
    """Count the classes that were named for the images of every class.

    Args:
        labels: of N images.
        named: the class that was named for each.

    Raises:
        ValueError: not as many of both, or none.
    """
    pairs = Counter(zip(labels, named, strict=True))
    cells = tuple((true, said, number) for (true, said), number in sorted(pairs.items()))
    return Confusion(images=len(labels), cells=cells)


class Changes(Record):
    """What became of the images of one test set from one network, or file, to another.

    Where an image has several labels, one of which fewer are right counts as lost, and one of
    which more are as gained.

    Attributes:
        kept: right in both.
        lost: right in the first only.
        gained: right in the second only.
        neither: wrong in both.
    """

    kept: Count
    lost: Count
    gained: Count
    neither: Count

    @property
    def images(self) -> int:
        """Of the test set."""
        return self.kept + self.lost + self.gained + self.neither


def changes_of(labels: Sequence[int], before: Sequence[int], after: Sequence[int]) -> Changes:
    """Count what became of the images with these labels and named classes.

    Raises:
        ValueError: not as many of all three.
    """
    found = Counter(
        (label == one, label == two) for label, one, two in zip(labels, before, after, strict=True)
    )
    return Changes(
        kept=found[True, True],
        lost=found[True, False],
        gained=found[False, True],
        neither=found[False, False],
    )


class Accuracy(MeasuredRecord):
    """Shares of `images` test images whose class was the first, or among the first five, named."""

    FIGURE: ClassVar[str] = "top-1"
    """Name of the primary figure, which guard, budgets and charts look at."""
    PAIRED: ClassVar[str] = FIGURE
    """Name of the figure that what became of single images tests."""
    SAME: ClassVar[str] = f"same {FIGURE}"
    """What two answers to an image have in common where they agree."""
    THINGS: ClassVar[tuple[str, str]] = ("class", "classes")
    """What is told apart: one, and several."""
    CHANGES: ClassVar[tuple[str, str, str, str]] = (
        "right in both",
        "lost",
        "gained",
        "wrong in both",
    )
    """What `Changes` counts: kept, lost, gained, neither."""

    top1: Share
    top5: Share
    images: Positive

    @property
    def figure(self) -> float:
        """The primary figure, a share: more is better."""
        return self.top1

    @property
    def columns(self) -> dict[str, float]:
        """Every figure by the head of its column in a report, the primary one first."""
        return {self.FIGURE: self.top1, "top-5": self.top5}

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.top5 < self.top1:
            raise ValueError(f"top5: got {self.top5:g}; must be >= top1, which is {self.top1:g}")
        return self


AnyAccuracy = Accuracy | LabelAccuracy | BoxAccuracy | MapAccuracy
"""The metric of any task."""


def accuracy_drop_pt(
    baseline: Mapping[str, AnyAccuracy], target: Mapping[str, AnyAccuracy] | None
) -> float | None:
    """Percentage points of the primary figure lost on the baseline's first test set.

    Below 0 when gained.

    Raises:
        ValueError: when the target was not tested on the same images.
    """
    if target is None:
        return None
    name, before = next(iter(baseline.items()))
    after = target.get(name)
    if after is None or after.images != before.images:
        raise ValueError(f"test set {name!r}: got {after}; test the {before.images} images")
    # (0.98 - 0.97) * 100 is 1.0000000000000009: a budget of 1 point would fail by rounding.
    return round((before.figure - after.figure) * 100, 9)
