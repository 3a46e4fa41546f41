"""`pocketnest debug`: compare a file with its program and the float network, layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import completes_folders, positive
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run, and how much to look at."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    parser.add_argument("--images", type=positive, default=32, metavar="N", help="images to run")
    parser.add_argument("--rows", type=positive, default=20, metavar="N", help="layers to show")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="default: debug.csv in the run")


def run(arguments: argparse.Namespace) -> int:
    """Show the layers of a run's file, worst first, and write all of them to a CSV file.

    Raises:
        InputError: no finished run of an int8 target, or the CSV file cannot be written.
    """
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.stages.finished_run import open_run

    finished = open_run(arguments.run_dir, arguments.target)
    path: Path = arguments.csv or finished.directory / "debug.csv"
    refuse_outputs(files=[path])
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.commands.debug.layers import compared_layers, write_csv
        from pipeline.commands.debug.table import show
        from pipeline.commands.titles import runtime_title

        rows = compared_layers(finished, arguments.images)
        by = runtime_title(finished, finished.format.traced_by)
        show(f"[bold]{finished.recipe.name}[/bold]  {by}", rows[: arguments.rows], console)
        write_csv(rows, path)
        console.print(f"all {len(rows)} layers: {path}", highlight=False)
    return OK


DEBUG = Command(
    help="compare a file with its program and the float model, layer by layer",
    examples=("pocketnest debug artifacts/android-litert-int8",),
    add_arguments=add_arguments,
    run=run,
)
