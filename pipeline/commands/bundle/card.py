"""The model card: what a model is for, how good it is and where it ends, for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.base.templates import templates
from pipeline.formats.formats import FORMATS
from pipeline.recipe.target import CardConfig
from pipeline.report import device, words
from pipeline.report.labels import by_label
from pipeline.report.records import Report, TargetResult

_LISTED = 20
"""Classes of the table; of more, those that the file knows least."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class and the shares of its images that were right; None without images.

    Of a label, the average precisions.
    """

    name: str
    images: int
    float_model: float | None
    file: float | None


def model_card(report: Report, card: CardConfig, threshold: float | None = None) -> str:
    """The card of a report's only target, as Markdown.

    Args:
        report: of one recipe.
        card: of the recipe; what it does not say is said to be missing.
        threshold: probability above which a label is named; None where one class is named.
    """
    (target,) = report.targets
    pruning = target.pruning
    unit = f" {pruning.unit}" if pruning and pruning.unit != "share" else ""
    return (
        templates("pipeline.commands.bundle")
        .get_template("model_card.md.j2")
        .render(
            report=report,
            target=target,
            card=card,
            threshold=threshold,
            kind=next(iter(report.baseline.accuracy.values())),
            unit=unit,
            format=FORMATS[target.format].title,
            words=words,
            device=device,
            text=words.markdown_text,
            percent=words.percent,
            figure=words.figure,
            tables={name: class_rows(report, target, name) for name in report.data.test_sets},
            listed=_LISTED,
            verdict=words.budget_verdict([target]),
        )
    )


def class_rows(report: Report, target: TargetResult, test_set: str) -> list[ClassRow]:
    """Every class of a test set, or the `_LISTED` worst ones by the file's accuracy."""
    if labels := by_label(report).get(test_set):
        return _worst(
            ClassRow(name=row.name, images=row.images, float_model=row.float_model, file=file)
            for row in labels
            for file in row.files
        )
    if target.confusion is None or test_set not in target.confusion:
        return []
    names = words.class_names(report)
    before = (report.baseline.confusion or {}).get(test_set)
    after = target.confusion[test_set].by_class(len(names))
    floats: list[Any] = before.by_class(len(names)) if before else [None] * len(names)
    return _worst(
        ClassRow(
            name=name, images=count, float_model=_share(floats[n]), file=_share((right, count))
        )
        for n, (name, (right, count)) in enumerate(zip(names, after, strict=True))
    )


def _worst(found: Iterable[ClassRow]) -> list[ClassRow]:
    """All rows; of more than `_LISTED`, the worst."""
    rows = list(found)
    if len(rows) > _LISTED:
        rows = sorted((row for row in rows if row.file is not None), key=_accuracy)[:_LISTED]
    return rows


def _accuracy(row: ClassRow) -> float:
    assert row.file is not None
    return row.file


def _share(found: tuple[int, int] | None) -> float | None:
    if found is None or found[1] == 0:
        return None
    return found[0] / found[1]
