"""Classes or labels one by one: of many, those that lose most, and all of them for a spreadsheet.

A page with a row for each of a thousand classes and every test set is slow to open, and nobody
reads it. The whole table goes with the page all the same, as one link that holds it.
"""

from __future__ import annotations

import base64
import csv
import heapq
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pipeline.report import words
from pipeline.report.records import Report

MOST_ROWS = 100
"""Classes up to which every one has its row."""
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet begins what it computes; a name that does is to stay a name."""


class Row(Protocol):
    """A class or a label of a test set, and what became of it."""

    @property
    def loss(self) -> float:
        """What the file that loses most loses of it; more is worse."""


AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class and how many of its images were named rightly, on one test set.

    Attributes:
        name: of the class.
        columns: (right, images) of the float model and of every target; None where not measured.
    """

    name: str
    columns: tuple[tuple[int, int] | None, ...]

    @property
    def loss(self) -> float:
        """Images that the worst file gets wrong more often than the float model does."""
        before, *files = self.columns
        measured = [found for found in files if found is not None]
        return max(((before or (all_, all_))[0] - right for right, all_ in measured), default=0)


def by_class(report: Report) -> dict[str, list[ClassRow]]:
    """Every class, by test set; nothing of test sets on which no classes were counted."""
    found = {}
    classes = words.class_names(report)
    every = [report.baseline.confusion, *(target.confusion for target in report.targets)]
    for name in report.data.test_sets:
        columns: list[list[tuple[int, int]] | None] = [
            None if one is None or name not in one else one[name].by_class(len(classes))
            for one in every
        ]
        if any(column is not None for column in columns):
            found[name] = [
                ClassRow(
                    name=label,
                    columns=tuple(None if column is None else column[row] for column in columns),
                )
                for row, label in enumerate(classes)
            ]
    return found


def worst(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """All rows, in order; of more than `MOST_ROWS`, those that lose most, worst first."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    ordered = heapq.nsmallest(MOST_ROWS, enumerate(rows), key=lambda one: (-one[1].loss, one[0]))
    return [row for _, row in ordered]


def counts_link(report: Report, rows: Iterable[ClassRow]) -> str:
    """Address that holds every class with its images, and how many each model named rightly."""
    header = ["class", "images", "float", *(target.name for target in report.targets)]
    lines = [
        [
            row.name,
            next((str(images) for _, images in filter(None, row.columns)), ""),
            *("" if found is None else str(found[0]) for found in row.columns),
        ]
        for row in rows
    ]
    return csv_link(header, lines)


def csv_link(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Address that holds a table as a CSV file (RFC 4180), in UTF-8 with a mark that says so."""
    written = io.StringIO()
    table = csv.writer(written)
    table.writerows([_name(cell) for cell in row] for row in (header, *rows))
    content = written.getvalue().encode("utf-8-sig")
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"


def _name(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULAS) else cell
