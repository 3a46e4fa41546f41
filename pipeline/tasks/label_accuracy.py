"""How well labels are told, where an image may have several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import model_validator

from pipeline.base.record import Count, Positive, Record, Share


def mean_of(precisions: Sequence[float | None]) -> float | None:
    """The mean over the labels that an image has (macro average); None where none has any.

    Args:
        precisions: average precision of every label, None of one that no image has.
    """
    known = [one for one in precisions if one is not None]
    # The sum may be a little more than as many times 1.
    return min(1.0, math.fsum(known) / len(known)) if known else None


class LabelAccuracy(Record):
    """How well the labels of `images` test images are told.

    Attributes:
        mean_ap: mean average precision, over the labels that an image has.
        micro_f1: 2 TP / (2 TP + FP + FN), counted over all images and labels, of the labels that
            are named against those that the images have.
        images: of the test set.
        ap: average precision of every label, in order; None of one that no image has.
        positives: images that have each label.
    """

    FIGURE: ClassVar[str] = "mAP"
    """Name of the primary figure, which guard, budgets and charts look at."""
    PAIRED: ClassVar[str] = "micro F1"
    """Name of the figure that what became of single images tests."""
    SAME: ClassVar[str] = "same label decisions"
    """What two answers to an image have in common where they agree."""
    THINGS: ClassVar[tuple[str, str]] = ("label", "labels")
    """What is told apart: one, and several."""
    CHANGES: ClassVar[tuple[str, str, str, str]] = (
        *("all labels right in both", "fewer labels right", "more labels right"),
        "as many right, not all",
    )
    """What `Changes` counts: kept, lost, gained, neither."""

    EACH: ClassVar[str] = "average precision"
    """What `each` says of a label."""
    COUNTED: ClassVar[str] = "images"
    """What `counts` are of."""

    mean_ap: Share
    micro_f1: Share
    images: Positive
    ap: tuple[Share | None, ...]
    positives: tuple[Count, ...]

    @property
    def figure(self) -> float:
        """The primary figure, a share: more is better."""
        return self.mean_ap

    @property
    def each(self) -> tuple[float | None, ...]:
        """The average precision of every label; None of one that no image has."""
        return self.ap

    @property
    def counts(self) -> tuple[int, ...]:
        """Images that have each label."""
        return self.positives

    @property
    def columns(self) -> dict[str, float]:
        """Every figure by the head of its column in a report, the primary one first."""
        return {self.FIGURE: self.mean_ap, self.PAIRED: self.micro_f1}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if [one is None for one in self.ap] != [count == 0 for count in self.positives]:
            raise ValueError("ap: must be that of the labels that an image has, and of no other")
        if self.mean_ap != mean_of(self.ap):
            raise ValueError(f"mean_ap: got {self.mean_ap:g}; must be the mean of ap")
        return self
