"""How alike a file and its program are, as the report keeps it."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.base.record import Count, MeasuredRecord, Positive, Share, Text


class OutputSteps(MeasuredRecord):
    """How far logits are from the program's, in steps of their int8 grid.

    `median` and `p99` are percentiles over all logits of all images, `largest` is the largest,
    and `differing` the share that differ at all.
    """

    median: Count
    p99: Count
    largest: Count
    differing: Share


class Parity(MeasuredRecord):
    """Whether a file answers as the program it was written from.

    Attributes:
        images: calibration and test images that both answered, which the gates are taken on.
        available: as many as there are, of which those were drawn; None in older reports, where
            they are all.
        agreement: share of them with the same result, for a classifier the same class.
        steps: how far the logits are apart; None for a float file.
        difference: of a float file, the 99th percentile of the logits' differences, as a share
            of the largest logit.
        rounding: of an int8 file, how far the program's own logits move on the calibration images
            when its numbers are rounded otherwise; None where that was not measured.
        layers: layers of an int8 file that were compared one by one; 0 for a float file.
        layers_alike: those that make the same of the same numbers, but for rounding.
        misses: each gate that the file does not pass, in words.
        first_difference: the first layer that differs, where there is a miss.
        passed: whether there is no miss. A run stops at one unless --allow-mismatch is given.
    """

    images: Positive
    available: Positive | None = None
    agreement: Share
    steps: OutputSteps | None
    difference: Annotated[float, Field(ge=0)] | None
    rounding: OutputSteps | None = None
    layers: Count
    layers_alike: Count
    misses: tuple[Text, ...] = ()
    first_difference: Text | None = None
    passed: bool

    @property
    def sampled(self) -> bool:
        """Whether there are more images than the gates are taken on."""
        return self.available is not None and self.available > self.images

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.passed is bool(self.misses):
            raise ValueError(f"passed: got {self.passed}, with {len(self.misses)} misses")
        if (self.steps is None) == (self.difference is None):
            raise ValueError("give steps, for an int8 file, or difference, for a float one")
        if self.steps is None and self.rounding is not None:
            raise ValueError("rounding: a float file has no grid to count it on; leave it out")
        return self
