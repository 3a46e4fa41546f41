"""What was made of an image, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.titles import runtime_title

if TYPE_CHECKING:
    from pipeline.stages.finished_run import Finished
    from pipeline.tasks.task import Prediction


def show(found: Prediction, runs: Sequence[Finished], console: Console) -> None:
    """Print the results of one image, a column for the float network and for every file."""
    titles = {run.recipe.name: runtime_title(run, run.format.module().evaluated()) for run in runs}
    rows = found.rows()
    table = Table(box=None, pad_edge=False)
    table.add_column(found.heading())
    columns = list(rows[0][1])
    for column in columns:
        table.add_column(titles.get(column, column), justify="right")
    for name, cells in rows:
        table.add_row(escape(name), *(cells[column] for column in columns))
    console.print(f"[bold]{escape(found.image)}[/bold]", highlight=False)
    console.print(table)
    for note in found.notes():
        console.print(escape(note), highlight=False)
