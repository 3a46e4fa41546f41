"""Labels one by one, where an image may have several: the average precision of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.report import words
from pipeline.report.classes import csv_link, worst
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

    @property
    def loss(self) -> float:
        """Average precision that the worst file loses; 0 where it was not measured."""
        before, after = self.float_model, [found for found in self.files if found is not None]
        return 0.0 if before is None else max((before - found for found in after), default=0.0)


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


def precisions_link(report: Report, rows: Iterable[LabelRow]) -> str:
    """Address that holds every label with its images and average precisions."""
    header = ["label", "images", "float", *(target.name for target in report.targets)]
    lines = [
        [
            row.name,
            str(row.images),
            *("" if ap is None else f"{ap:.6g}" for ap in (row.float_model, *row.files)),
        ]
        for row in rows
    ]
    return csv_link(header, lines)


def section(report: Report) -> list[str]:
    """The part of report.md: labels of every test set; nothing where an image has one class."""
    parts = []
    names = [words.markdown_text(target.name) for target in report.targets]
    for test_set, rows in by_label(report).items():
        lines = [
            [words.markdown_text(row.name), str(row.images), shown(row, row.float_model)]
            + [shown(row, found) for found in row.files]
            for row in worst(rows)
        ]
        parts.append(f"### Average precision by label: {words.markdown_text(test_set)}")
        if len(lines) < len(rows):
            parts.append(
                f"The {len(lines)} of {len(rows)} labels that lose most, worst first; "
                "`report.json` has them all."
            )
        parts.append(words.table(["label", "images", "float baseline", *names], lines))
    return parts


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
