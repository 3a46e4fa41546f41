"""Compared layers on the screen."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.commands.debug.layers import ComparedLayer
    from pipeline.commands.debug.sensitivity import LayerCost

_COLUMNS = ("scale", "outside", "lost", "program", "file", "differ", "steps", "own steps")
_LEGEND = """\
worst first; red: the file computes it otherwise than the program.
outside: float values outside the grid. program, file: signal to quantization noise against the
float network, dB; lost: against the worst layer it reads. differ: values that file and program do
not share; steps: by how much, 99th percentile / largest; own steps: what this layer alone adds."""


_COST_LEGEND = """\
dearest first: every layer alone in int8, its weights and its output, all others float; first all
together. lost: percentage points; same: results that stay the float network's; answers: signal to
quantization noise of the network's answers, dB, which the order is of."""


def show_costs(title: str, figure: str, rows: Sequence[LayerCost], console: Console) -> None:
    """Print what layers cost, under the name of the task's `figure`, and what it means."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer in int8")
    for heading in (figure, "lost", "same", "answers"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            escape(f"{row.module} {row.operation}".strip()),
            f"{row.figure:.2%}",
            f"{row.lost_pt:.2f}",
            f"{row.agreement:.2%}",
            f"{row.sqnr_db:.1f}",
        )
    console.print(title, highlight=False)
    console.print(table)
    console.print(_COST_LEGEND, highlight=False)


def write_csv(rows: Sequence[ComparedLayer] | Sequence[LayerCost], path: Path) -> None:
    """Write every row, in order, under a header of the attributes' names."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def show(title: str, rows: Sequence[ComparedLayer], console: Console) -> None:
    """Print a title with markup, the layers, and what the columns mean."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    console.print(title, highlight=False)
    console.print(table)
    console.print(_LEGEND, highlight=False)


def _cells(row: ComparedLayer) -> list[str]:
    same_grid = (row.scale, row.zero_point) == (row.file_scale, row.file_zero_point)
    title = escape(f"{row.module} {row.operation}".strip())
    found = f"{row.file_scale:.6g}"
    return [
        f"[red]{title}[/red]" if row.at_fault else title,
        found if same_grid else f"[red]{found}, not {row.scale:.6g}[/red]",
        f"{row.saturated:.2%}",
        f"{row.lost_db:.1f}",
        f"{row.program_sqnr_db:.1f}",
        f"{row.file_sqnr_db:.1f}",
        f"{row.differing:.2%}",
        f"{row.steps_p99} / {row.steps_largest}",
        f"{row.own_p99} / {row.own_largest}",
    ]
