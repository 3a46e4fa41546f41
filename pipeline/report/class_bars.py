"""The figure of every class of pixels, as bars: the float model beside every file."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report import charts
from pipeline.report.labels import by_label
from pipeline.report.records import Report
from pipeline.tasks.map_accuracy import MapAccuracy

MOST_IN_A_MATRIX = 20
"""Classes up to which all are drawn, and a confusion matrix is shown whole; of more the largest
cells are listed."""


def by_class_bars(report: Report) -> Iterator[tuple[str, str, str]]:
    """A chart of every test set: its name, the SVG, and what it shows in words."""
    if report.model.num_classes > MOST_IN_A_MATRIX:
        return
    columns = ("float", *(target.name for target in report.targets))
    for name, rows in by_label(report).items():
        kind = report.baseline.accuracy[name]
        if not isinstance(kind, MapAccuracy):
            continue
        groups = []
        for number, row in enumerate(rows):
            both = zip(columns, (row.float_model, *row.files), strict=True)
            values = tuple((column, 100 * share) for column, share in both if share is not None)
            if values:
                groups.append((row.name, values, number))
        said = "; ".join(
            f"{group}: " + ", ".join(f"{column} {share:.3g} %" for column, share in values)
            for group, values, _ in groups
        )
        yield name, charts.bars(tuple(groups), "%"), f"{kind.EACH} by class on {name}. {said}."
