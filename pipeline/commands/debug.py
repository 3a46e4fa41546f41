"""`pocketnest debug`: compare a file with its program and the float network, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pipeline.base.console import third_party_output_to
from pipeline.base.safe_files import refuse_to_write
from pipeline.commands.run import LOG

if TYPE_CHECKING:
    from pipeline.commands.debug_table import Row
    from pipeline.stages.finished_run import Finished


def titled(run: Finished, computed_by: str) -> str:
    """The runtime that computed a file's answers, for the head of a table."""
    reference = " (reference)" if computed_by == "reference" else ""
    return f"{run.format.RUNTIME}{reference}"


def debug(arguments: argparse.Namespace) -> None:
    """Show the layers of a run's file, worst first, and write all of them to a CSV file.

    Raises:
        InputError: no finished run of an int8 target.
    """
    from pipeline.stages.finished_run import open_run

    run = open_run(arguments.run_dir, arguments.target)
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.debug_table import debug_rows, write_csv

        rows = debug_rows(run, arguments.images)
        table = Table(box=None, pad_edge=False)
        table.add_column("layer")
        for heading in _DEBUG_COLUMNS:
            table.add_column(heading, justify="right")
        for row in rows[: arguments.rows]:
            table.add_row(*_layer_row(row))
        console.print(
            f"[bold]{run.recipe.name}[/bold]  {titled(run, run.format.TRACED_BY)}", highlight=False
        )
        console.print(table)
        console.print(_DEBUG_LEGEND, highlight=False)
        path: Path = arguments.csv or run.directory / "debug.csv"
        refuse_to_write(path)
        write_csv(rows, path)
        console.print(f"all {len(rows)} layers: {path}", highlight=False)


_DEBUG_COLUMNS = ("scale", "outside", "lost", "program", "file", "differ", "steps", "own steps")
_DEBUG_LEGEND = """\
worst first; red: the file computes it otherwise than the program.
outside: float values outside the grid. program, file: signal to quantization noise against the
float network, dB; lost: against the worst layer it reads. differ: values that file and program do
not share; steps: by how much, 99th percentile / largest; own steps: what this layer alone adds."""


def _layer_row(row: Row) -> list[str]:
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
