"""A table of the labels of images: a CSV file, a row an image, in one of two layouts.

    file,cat,dog          file,labels
    a.jpg,1,0             a.jpg,cat
    b.jpg,1,1             b.jpg,cat dog
    c.jpg,0,0             c.jpg,

On the right the labels of an image are separated by spaces, or by `,` (in quotes), `;` or `|`, of
which all tables of a recipe have the same.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.errors import InputError, listed
from pipeline.base.safe_files import content_of

NAME = "labels.csv"
"""Of the table that is looked for beside images."""

_FILE, _LIST = "file", "labels"
_MOST_BYTES = 256 * 2**20
_SEPARATORS = ",;|"
_SHOWN = 10
LAYOUTS = "`file,cat,dog` with 0 or 1 in every row, or `file,labels` with names"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    Attributes:
        number: in the file, which begins with row 1, the names of the columns.
        file: as it stands there.
        cells: the others: 0 or 1 for every column, or the names of all labels in one.
    """

    number: int
    file: str
    cells: tuple[str, ...]


@dataclass(kw_only=True, eq=False)
class Table:
    """A table as it was read; `problems` is what is wrong with it, a line each.

    Attributes:
        key: of the recipe, which says where the table is.
        path: of the file.
        columns: names of the labels; None where every row has a list of them.
        rows: that have as many cells as there are columns.
        problems: what is wrong, a line each.
    """

    key: str
    path: Path
    columns: tuple[str, ...] | None = None
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def wrong(self, row: int, what: str) -> None:
        """Note what is wrong with a row."""
        self.problems.append(f"{self.key}: {self.path}, row {row}: {what}")

    def told(self) -> list[str]:
        """The first problems, and how many more."""
        more = len(self.problems) - _SHOWN
        last = [f"{self.key}: {self.path}: and {more} more such rows"] if more > 0 else []
        return self.problems[:_SHOWN] + last


def read_table(key: str, path: Path) -> Table:
    """Read a table.

    Args:
        key: of the recipe, which says where the table is.
        path: of the file.

    Raises:
        InputError: it cannot be read at all.
    """
    table = Table(key=key, path=path)
    lines = _lines(key, path)
    _, head = next(lines, (1, []))
    columns = [_plain(name) for name in head]
    if fault := _fault(columns):
        table.wrong(1, f"got {','.join(columns)[:80]!r}; {fault}; begin the table with {LAYOUTS}")
        return table
    if columns[1:] != [_LIST]:
        table.columns = tuple(columns[1:])
    for number, cells in lines:
        if not cells:
            continue
        if len(cells) != len(columns):
            quotes = "" if table.columns else '; put several labels in quotes, as in a.jpg,"x,y"'
            table.wrong(
                number, f"has {len(cells)} cells, and the table {len(columns)} columns{quotes}"
            )
        else:
            file, *others = (cell.strip() for cell in cells)
            table.rows.append(Row(number=number, file=file, cells=tuple(others)))
    return table


def _lines(key: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Every row with its number; an empty line is a row without cells."""
    try:
        text = content_of(path, _MOST_BYTES).decode("utf-8-sig")
        yield from enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), 1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{key}: {path}: cannot be read ({error}); give a table in CSV, as UTF-8 text"
        ) from error


def _plain(name: str) -> str:
    return " ".join(name.split())


def _fault(columns: Sequence[str]) -> str | None:
    """What is wrong with the names of the columns."""
    twice = [name for name, times in Counter(columns).items() if times > 1]
    if not columns or columns[0] != _FILE:
        return f"the first column must be `{_FILE}`, the image's path from the table"
    if len(columns) == 1:
        return "there are no labels (columns are separated by commas)"
    if not all(columns):
        return f"column {columns.index('') + 1} has no name"
    return f"more than one column is named {listed(map(repr, twice))}" if twice else None


def separator_of(tables: Sequence[Table]) -> str | None:
    """What stands between the names of labels in all tables that have lists of them.

    None where that is space. What two tables have in different ways is noted as a problem.
    """
    first: dict[str, tuple[Table, int]] = {}
    for table in tables:
        for row in table.rows if table.columns is None else ():
            for mark in _SEPARATORS:
                if mark in row.cells[0]:
                    first.setdefault(mark, (table, row.number))
    if len(first) > 1:
        (one, (other, before)), (mark, (table, number)) = list(first.items())[:2]
        table.wrong(
            number,
            f"has {mark!r} between labels, and row {before} of {other.path} has {one!r}; separate "
            "all by the same",
        )
    return next(iter(first), None)


def labels_in(table: Table, row: Row, separator: str | None) -> list[str]:
    """The labels of a row, in order; what is neither 0 nor 1 is noted as a problem."""
    if table.columns is None:
        return list(dict.fromkeys(filter(None, map(_plain, row.cells[0].split(separator)))))
    found = []
    for label, cell in zip(table.columns, row.cells, strict=True):
        if cell not in ("0", "1"):
            table.wrong(
                row.number, f"file {row.file!r}: label {label!r} is {cell!r}; must be 0 or 1"
            )
        elif cell == "1":
            found.append(label)
    return found
