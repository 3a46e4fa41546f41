"""How many of a file's scales are the learned ones, as the report keeps it."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from pipeline.base.record import Count, MeasuredRecord, Positive


class ScalesExact(MeasuredRecord):
    """How many of the file's quantization scales are exactly the learned ones."""

    same: Count
    total: Positive

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.same > self.total:
            raise ValueError(f"same: got {self.same}; must be <= total, which is {self.total}")
        return self
