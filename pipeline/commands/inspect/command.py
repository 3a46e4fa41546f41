"""`pocketnest inspect`: list the layers of a network, before and after."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.commands.arguments import add_overrides, completes_files, positive
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take a recipe or the folder of a run."""
    completes_files(parser.add_argument("target", type=Path, metavar="RECIPE|RUN_DIR"))
    parser.add_argument(
        "name", nargs="?", metavar="TARGET", help="name of a recipe, where RUN_DIR has several"
    )
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="timed rounds")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all figures there too")
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Show every layer of a recipe's network, or of a run before and after pruning.

    Raises:
        InputError: neither a recipe nor the directory of a finished run, or the CSV file cannot
            be written.
    """
    from pipeline.base.console import LOG, third_party_output_to
    from pipeline.base.safe_files import refuse_outputs
    from pipeline.recipe.recipe import load_recipes
    from pipeline.stages.known import KNOWN

    target: Path = arguments.target
    path: Path | None = arguments.csv
    refuse_outputs(files=[] if path is None else [path])
    if target.is_dir():
        from pipeline.stages.finished_run import open_run

        finished, log = open_run(target, arguments.name), target / LOG
        recipe = finished.recipe
    else:
        (recipe,) = load_recipes([target], arguments.overrides, KNOWN)
        finished, log = None, Path(os.devnull)
    with third_party_output_to(log) as console:
        from pipeline.commands.inspect.layers import table_of_recipe, table_of_run, write_csv
        from pipeline.commands.inspect.table import show

        rows = (
            table_of_recipe(recipe)
            if finished is None
            else table_of_run(finished, arguments.rounds)
        )
        show(rows, recipe.name, console)
        if path is not None:
            write_csv(rows, path)
            console.print(f"all figures: {path}", highlight=False)
    return OK


INSPECT = Command(
    help="list the layers of a recipe's network, or of a run before and after",
    examples=(
        "pocketnest inspect my-phone.yaml",
        "pocketnest inspect artifacts/android-litert-int8 --csv layers.csv",
    ),
    add_arguments=add_arguments,
    run=run,
)
