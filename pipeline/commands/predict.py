"""`pocketnest predict`: classify images with the float network and every exported file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.base.console import third_party_output_to
from pipeline.base.safe_files import content_of
from pipeline.commands.debug import titled
from pipeline.commands.run import LOG

if TYPE_CHECKING:
    from pipeline.commands.answers import Prediction
    from pipeline.stages.finished_run import Finished


def predict(run_dir: Path, image: Path, top: int) -> None:
    """Show the classes of an image, of every image in a directory, or of one from stdin (`-`).

    Raises:
        InputError: no finished run, or no image that can be read.
    """
    from pipeline.stages.finished_run import open_runs
    from pipeline.tasks.images.files import MOST_BYTES, image_files

    runs = open_runs(run_dir)
    if str(image) == "-":
        images = [("-", sys.stdin.buffer.read(MOST_BYTES))]
    else:
        images = [(str(file), content_of(file, MOST_BYTES)) for file in image_files(image)]
    with third_party_output_to(run_dir / LOG) as console:
        from pipeline.commands.answers import predict

        for found in predict(runs, images, top):
            _show_prediction(found, runs, console)


def _show_prediction(found: Prediction, runs: Sequence[Finished], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    titles = {run.recipe.name: titled(run, run.format.evaluated()) for run in runs}
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
