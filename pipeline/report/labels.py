"""Labels one by one, or the classes of pixels: the figure of each, where an image has several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.report import words
from pipeline.report.classes import csv_link, worst
from pipeline.report.records import Report
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.box_accuracy import BoxAccuracy
from pipeline.tasks.label_accuracy import LabelAccuracy
from pipeline.tasks.map_accuracy import MapAccuracy

OfEach = LabelAccuracy | MapAccuracy | BoxAccuracy
"""The metrics that have a figure for each label, or class."""


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """A label, or class of pixels, and its figure on one test set.

    Attributes:
        name: of the label.
        images: that have it; of a class of pixels the pixels.
        float_model: figure of the float baseline; None where nothing has the label.
        files: of every target, in order; None likewise, and where it was not measured.
    """

    name: str
    images: int
    float_model: float | None
    files: tuple[float | None, ...]

    @property
    def loss(self) -> float:
        """What the worst file loses of the figure; 0 where it was not measured."""
        before, after = self.float_model, [found for found in self.files if found is not None]
        return 0.0 if before is None else max((before - found for found in after), default=0.0)


def by_label(report: Report) -> dict[str, list[LabelRow]]:
    """Every label or class, by test set; nothing where an image has one class alone."""
    found = {}
    for name, base in report.baseline.accuracy.items():
        if not isinstance(base, OfEach):
            continue
        files = [_precisions(target.accuracy, name, len(base.each)) for target in report.targets]
        found[name] = [
            LabelRow(
                name=label,
                images=base.counts[row],
                float_model=base.each[row],
                files=tuple(precisions[row] for precisions in files),
            )
            for row, label in enumerate(words.class_names(report))
        ]
    return found


def precisions_link(report: Report, rows: Iterable[LabelRow]) -> str:
    """Address that holds every label with its images, or pixels, and its figures."""
    kind = kind_of(report)
    header = [kind.THINGS[0], kind.COUNTED, "float", *(target.name for target in report.targets)]
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
    parts: list[str] = []
    if not by_label(report):
        return parts
    kind = kind_of(report)
    one, several = kind.THINGS
    names = [words.markdown_text(target.name) for target in report.targets]
    for test_set, rows in by_label(report).items():
        lines = [
            [
                words.markdown_text(row.name),
                str(row.images),
                *(shown(kind, row, found) for found in (row.float_model, *row.files)),
            ]
            for row in worst(rows)
        ]
        parts.append(f"### {words.title(kind.EACH)} by {one}: {words.markdown_text(test_set)}")
        if len(lines) < len(rows):
            parts.append(
                f"The {len(lines)} of {len(rows)} {several} that lose most, worst first; "
                "`report.json` has them all."
            )
        parts.append(words.table([one, kind.COUNTED, "float baseline", *names], lines))
    return parts


def _precisions(
    accuracy: Mapping[str, AnyAccuracy] | None, name: str, labels: int
) -> tuple[float | None, ...]:
    one = (accuracy or {}).get(name)
    return one.each if isinstance(one, OfEach) else (None,) * labels


def shown(kind: OfEach, row: LabelRow, figure: float | None) -> str:
    """Write the figure of a label."""
    if row.images == 0 and figure is None:
        return f"no {kind.COUNTED}"
    return "not measured" if figure is None else words.percent(figure)


def kind_of(report: Report) -> OfEach:
    """A metric of the report, for its words.

    Raises:
        ValueError: it has no figure for each label.
    """
    found = next(iter(report.baseline.accuracy.values()))
    if not isinstance(found, OfEach):
        raise ValueError(f"{found.FIGURE}: has no figure for each of the {found.THINGS[1]}")
    return found
