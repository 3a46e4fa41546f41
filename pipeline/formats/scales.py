"""How many of a file's scales are the learned ones, as the report keeps it."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from pipeline.base.record import Count, MeasuredRecord, Positive


class ScalesExact(MeasuredRecord):
    """How many of the file's quantization scales and of its weights are exactly the learned ones.

    Attributes:
        same: scales that are.
        total: scales.
        codes_same: weights whose whole number, with a palette the value that it stands for, is. A
            tensor with another one counts as a whole.
        codes_total: weights; 0 in reports of before they were counted.
    """

    same: Count
    total: Positive
    codes_same: Count = 0
    codes_total: Count = 0

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.same > self.total:
            raise ValueError(f"same: got {self.same}; must be <= total, which is {self.total}")
        if self.codes_same > self.codes_total:
            raise ValueError(
                f"codes_same: got {self.codes_same}; must be <= codes_total, which is "
                f"{self.codes_total}"
            )
        return self
