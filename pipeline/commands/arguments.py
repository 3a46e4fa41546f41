"""Arguments that several commands take: numbers, names that shells complete, `--set`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from pathlib import Path

import shtab


def completes_files(argument: argparse.Action) -> None:
    """Have shells complete names of files."""
    argument.complete = shtab.FILE  # type: ignore[attr-defined]


def completes_folders(argument: argparse.Action) -> None:
    """Have shells complete names of folders."""
    argument.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE`, which changes values of the recipes."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="change a recipe value, such as train.epochs=3; can be given several times",
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data DIR`, for runs whose images were moved."""
    completes_folders(
        parser.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="where the run's images lie now: in place of the folder that its data.train and "
            "data.test lay in (or data.path)",
        )
    )


def some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """A type of argument: some of `known`, with commas between them."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"got {name!r}; must be some of {','.join(known)}")
        return found

    return names


def positive(text: str) -> int:
    """A whole number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a whole number above 0")
    return int(text)


def number(text: str) -> float:
    """A finite number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"got {text!r}; must be a number of at least 0")
    return found
