"""`pocketnest check`: validate recipes."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_overrides, completes_files
from pipeline.commands.command import OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take recipes."""
    completes_files(parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE"))
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a line for every recipe that can be run.

    Raises:
        InputError: one cannot; names every problem of it.
    """
    from pipeline.recipe.recipe import load_recipes
    from pipeline.stages.known import KNOWN
    from pipeline.stages.names import refuse_reserved

    for recipe in load_recipes(arguments.recipes, arguments.overrides, KNOWN):
        refuse_reserved(recipe)
        print(f"{recipe.name}: ok ({recipe.target.format}, {recipe.target.precision})")
    return OK


CHECK = Command(
    help="validate recipes; prints every problem at once",
    examples=("pocketnest check recipes/resnest50/android-litert-int8.yaml",),
    add_arguments=add_arguments,
    run=run,
)
