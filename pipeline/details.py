"""What stands behind the figures of a report: by class, by epoch and by layer.

confusion_of(labels=[0, 1, 1], named=[0, 1, 0])  # one image of class 1 was called class 0
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """A part of a report: cannot be changed, and holds nothing but its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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


class Epoch(Record):
    """One epoch of a training.

    Attributes:
        epoch: from 1 on.
        loss: mean over the epoch.
        accuracy: on the training images, while they were trained on.
        learning_rate: of the last step.
    """

    epoch: Positive
    loss: float
    accuracy: Share
    learning_rate: Annotated[float, Field(ge=0)]


class LayerWidth(Record):
    """Output channels of one layer of the network in branch form.

    Attributes:
        name: of the layer.
        kernel: such as `3x3`.
        before: in the network as it was trained.
        after: in the network that was written.
    """

    name: Text
    kernel: Text
    before: Positive
    after: Count
