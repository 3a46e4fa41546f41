"""`pocketnest debug`: compare a file with its program and the float network, layer by layer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.arguments import add_data, completes_folders, positive
from pipeline.commands.command import OK, Command

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.commands.debug.layers import ComparedLayer
    from pipeline.commands.debug.sensitivity import LayerCost
    from pipeline.stages.finished_run import Finished


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, and how much to look at."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    parser.add_argument("--images", type=positive, default=32, metavar="N", help="images to run")
    parser.add_argument("--rows", type=positive, default=20, metavar="N", help="layers to show")
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="what each layer alone costs in int8, on test images",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="default: debug.csv or sensitivity.csv in the run"
    )
    add_data(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show the layers of a run's file, worst first, and write all of them to a CSV file.

    Raises:
        InputError: no finished run of an int8 target, or the CSV file cannot be written.
    """
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.stages.finished_run import open_run

    finished = open_run(arguments.run_dir, arguments.target, arguments.data)
    name = "sensitivity.csv" if arguments.sensitivity else "debug.csv"
    path: Path = arguments.csv or finished.directory / name
    refuse_outputs(files=[path])
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.debug.table import write_csv

        look = _sensitivity if arguments.sensitivity else _layers
        rows = look(finished, arguments, console)
        write_csv(rows, path)
        console.print(f"all {len(rows)} rows: {path}", highlight=False)
    return OK


def _layers(
    finished: Finished, arguments: argparse.Namespace, console: Console
) -> Sequence[ComparedLayer]:
    from pipeline.commands.debug.layers import compared_layers
    from pipeline.commands.debug.table import show
    from pipeline.commands.titles import runtime_title

    rows = compared_layers(finished, arguments.images)
    by = runtime_title(finished, finished.format.traced_by)
    show(f"[bold]{finished.recipe.name}[/bold]  {by}", rows[: arguments.rows], console)
    return rows


def _sensitivity(
    finished: Finished, arguments: argparse.Namespace, console: Console
) -> Sequence[LayerCost]:
    from pipeline.commands.debug.sensitivity import run_costs
    from pipeline.commands.debug.table import show_costs
    from pipeline.tasks.tasks import TASKS

    rows = run_costs(finished, arguments.images)
    title = f"[bold]{finished.recipe.name}[/bold]  by torch"
    figure = TASKS[finished.recipe.task.kind].figure
    show_costs(title, figure, rows[: arguments.rows + 1], console)
    return rows


DEBUG = Command(
    help="compare a file with its program and the float model, layer by layer",
    examples=(
        "pocketnest debug artifacts/android-litert-int8",
        "pocketnest debug artifacts/android-litert-int8 --sensitivity",
    ),
    add_arguments=add_arguments,
    run=run,
)
