"""Words for where files run, by accelerator."""

from __future__ import annotations

from pipeline.formats.delegates import Delegate
from pipeline.report import words
from pipeline.report.records import Report

HEADER = ("target", "runs it", "operations", "not taken", "how that is known")
MEANING = (
    "By kinds of operations, as tools that run here and the vendors' own lists have them. Shapes, "
    "types and drivers can still keep an operation away: only the device shows where it runs."
)
_MOST = 4
"""Kinds of operations that are named."""


def section(report: Report) -> list[str]:
    """The section of report.md; nothing in older reports."""
    if not (found := rows(report)):
        return []
    cells = [[words.markdown_text(cell) for cell in row] for row in found]
    sources = [f"- {words.markdown_text(name)}: <{source}>" for name, source in cited(report)]
    return ["## Where it runs", words.table(HEADER, cells), MEANING, "\n".join(sources)]


def rows(report: Report) -> list[list[str]]:
    """A row for each file and accelerator, under `HEADER`."""
    return [[target.name, *_row(found)] for target in report.targets for found in target.delegates]


def cited(report: Report) -> list[tuple[str, str]]:
    """The sources that have an address, with what they are of, each once."""
    found = [one for target in report.targets for one in target.delegates]
    return list(dict.fromkeys((one.name, one.source) for one in found if one.source is not None))


def _row(found: Delegate) -> list[str]:
    how = found.by if found.note is None else f"{found.by}; {found.note}"
    if found.verdict == "not known":
        return [found.name, "not known", words.NOT_APPLICABLE, how]
    taken = {"all": "all", "none": "none"}.get(found.verdict, "some")
    more = len(found.left) - _MOST
    left = ", ".join(found.left[:_MOST]) + (f" and {more} more" if more > 0 else "")
    counts = f"{taken}, {found.taken} of {found.operations}"
    return [found.name, counts, left or words.NOT_APPLICABLE, how]
