"""`pocketnest compare`: what changed between two runs."""

from __future__ import annotations

import argparse


def compare(arguments: argparse.Namespace) -> bool:
    """Print what changed between two runs; True where nothing is a regression.

    Raises:
        InputError: a run cannot be read, or no target is in both.
    """
    from pipeline.commands.changes import Limits, as_json, markdown
    from pipeline.commands.changes import compare as changes_of
    from pipeline.stages.finished_run import open_runs

    limits = Limits(
        accuracy_drop_pt=arguments.accuracy_drop,
        size_growth=arguments.size_growth / 100,
        latency_growth=arguments.latency_growth / 100,
    )
    found = changes_of(open_runs(arguments.old), open_runs(arguments.new), limits)
    print(as_json(found) if arguments.json else markdown(found), end="")
    return all(one.verdict != "regression" for one in found)
