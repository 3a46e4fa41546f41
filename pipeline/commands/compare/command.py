"""`pocketnest compare`: what changed between two runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.commands.arguments import completes_folders, number
from pipeline.commands.command import BUDGET_MISSED, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take two folders of runs, and how much worse the later one may be."""
    for name, says in (
        ("old", "directory of a run, or combined"),
        ("new", "of a later run of the same recipes"),
    ):
        completes_folders(parser.add_argument(name, type=Path, metavar=name.upper(), help=says))
    parser.add_argument(
        "--accuracy-drop",
        type=number,
        default=0.5,
        metavar="POINTS",
        help="of accuracy that may be lost; a loss that chance explains is none (default 0.5)",
    )
    parser.add_argument(
        "--size-growth", type=number, default=2.0, metavar="PERCENT", help="default 2"
    )
    parser.add_argument(
        "--latency-growth",
        type=number,
        default=10.0,
        metavar="PERCENT",
        help="of the median, where the runs' intervals do not overlap (default 10)",
    )
    parser.add_argument(
        "--delta",
        action="store_true",
        help="also bytes of an update from the old file to the new one: a patch by bsdiff and by "
        "zstd, each applied and compared",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")


def run(arguments: argparse.Namespace) -> int:
    """Print what changed between two runs.

    Raises:
        InputError: a run cannot be read, no target is in both, or a file is too large for a patch.
        MismatchError: a patch does not make the new file of the old one.
    """
    from pipeline.commands.compare.change import Allowances
    from pipeline.commands.compare.changes import changes_between
    from pipeline.commands.compare.table import as_json, markdown
    from pipeline.commands.compare.updates import updates_between
    from pipeline.stages.finished_run import open_runs

    allowed = Allowances(
        accuracy_drop_pt=arguments.accuracy_drop,
        size_growth=arguments.size_growth / 100,
        latency_growth=arguments.latency_growth / 100,
    )
    old, new = open_runs(arguments.old), open_runs(arguments.new)
    found = changes_between(old, new, allowed)
    updates = updates_between(old, new) if arguments.delta else None
    print((as_json if arguments.json else markdown)(found, updates), end="")
    return BUDGET_MISSED if any(one.verdict == "regression" for one in found) else OK


COMPARE = Command(
    help="what changed between two runs, worst first; exit code 3 on a regression",
    examples=(
        "pocketnest compare artifacts-main/combined artifacts/combined > comment.md",
        "pocketnest compare old new --accuracy-drop 0.3 --json",
        "pocketnest compare artifacts-main/combined artifacts/combined --delta",
    ),
    add_arguments=add_arguments,
    run=run,
)
