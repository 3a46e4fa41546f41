"""The classes of an image on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.titles import runtime_title

if TYPE_CHECKING:
    from pipeline.commands.predict.classify import ImageScores
    from pipeline.stages.finished_run import Finished


def show(found: ImageScores, runs: Sequence[Finished], console: Console) -> None:
    """Print the first classes of one image, a column for the float network and for every file."""
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    titles = {run.recipe.name: runtime_title(run, run.format.evaluated()) for run in runs}
    for column in found.scores:
        table.add_column(titles.get(column, column), justify="right")
    for row, name in enumerate(found.classes):
        table.add_row(escape(name), *(f"{scores[row]:.4f}" for scores in found.scores.values()))
    console.print(f"[bold]{escape(found.image)}[/bold]", highlight=False)
    console.print(table)
    others = [f"{name}: {best}" for name, best in found.best.items() if best != found.classes[0]]
    if others:
        console.print(f"first class differs: {escape(', '.join(others))}", highlight=False)
    difference = f"largest difference from float: {found.largest_difference:.4f}"
    console.print(difference, highlight=False)
