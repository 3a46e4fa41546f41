"""Labels one by one, where an image may have several: the average precision of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.report import words
from pipeline.report.records import Report
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.label_accuracy import LabelAccuracy


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """A label and its average precisions on one test set.

    Attributes:
        name: of the label.
        images: that have it.
        float_model: average precision of the float baseline; None where no image has the label.
        files: of every target, in order; None likewise, and where it was not measured.
    """

    name: str
    images: int
    float_model: float | None
    files: tuple[float | None, ...]


def by_label(report: Report) -> dict[str, list[LabelRow]]:
    """Every label, by test set; nothing where an image has one class alone."""
    found = {}
    for name, base in report.baseline.accuracy.items():
        if not isinstance(base, LabelAccuracy):
            continue
        files = [_precisions(target.accuracy, name, len(base.ap)) for target in report.targets]
        found[name] = [
            LabelRow(
                name=label,
                images=base.positives[row],
                float_model=base.ap[row],
                files=tuple(precisions[row] for precisions in files),
            )
            for row, label in enumerate(words.class_names(report))
        ]
    return found


def _precisions(
    accuracy: Mapping[str, AnyAccuracy] | None, name: str, labels: int
) -> tuple[float | None, ...]:
    one = (accuracy or {}).get(name)
    return one.ap if isinstance(one, LabelAccuracy) else (None,) * labels


def shown(row: LabelRow, precision: float | None) -> str:
    """Write the average precision of a label."""
    if row.images == 0:
        return "no images"
    return "not measured" if precision is None else words.percent(precision)
