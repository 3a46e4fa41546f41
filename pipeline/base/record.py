"""Parts of a report: records that cannot be changed, with a reason for each missing figure."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(pattern=r"\S")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """A part of a report: cannot be changed, and holds nothing but its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Above0 = Annotated[float, Field(gt=0)]
UtcTime = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
"""Such as 2026-11-21T14:05:00Z; in the order of the text they are in the order of time."""
_REASONS = {
    "accuracy": "accuracy_missing",
    "accuracy_drop_pt": "accuracy_missing",
    "agreement": "accuracy_missing",
    "scales_exact": "scales_missing",
    "int8_coverage": "coverage_missing",
    "partitions": "partitions_missing",
    "latency_ms": "latency_missing",
    "speedup": "speedup_missing",
    "confusion": "confusion_missing",
    "value": "missing",
    "reached": "reached_missing",
}


class MeasuredRecord(Record):
    """A record whose figures have a reason beside them where they were not measured."""

    @model_validator(mode="after")
    def _figure_or_reason(self) -> Self:
        fields = dict(self)
        for figure, reason in _REASONS.items():
            paired = figure in fields and reason in fields
            if paired and (fields[figure] is None) == (fields[reason] is None):
                raise ValueError(f"give {figure} or {reason}, the reason why not, and not both")
        return self


def short_lists(content: str) -> str:
    """Indented JSON with lists of numbers on one line each: a report has thousands.

    No string has a line break in it, so none is taken for a list.
    """
    return re.sub(
        r"\[\n(?:[\d\s.,e+-]|null)*\]",
        lambda found: "[" + " ".join(found[0][1:-1].split()) + "]",
        content,
    )
