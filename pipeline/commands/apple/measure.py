"""A Mac's measurement from its beginning to the run's report, with what is seen of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from pipeline.base.console import tracked
from pipeline.base.errors import printable
from pipeline.commands.apple.wanted import wanted
from pipeline.commands.device.measure import show
from pipeline.measure.device.mac import Plan, measured
from pipeline.measure.lanes.apple.session import Mac, opened
from pipeline.stages.devices import take_in
from pipeline.stages.finished_run import Finished


def measure(
    arguments: argparse.Namespace, runs: Sequence[Finished], mac: Mac, console: Console
) -> bool:
    """Measure the packages of runs on a Mac and put what came of it into the runs.

    Args:
        arguments: of the command.
        runs: whose packages.
        mac: that runs them.
        console: the terminal.

    Returns:
        Whether every package answered as it should on every unit, and the budgets are kept.

    Raises:
        InputError: see `wanted` and `measured`.
    """

    def tell(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False)

    with TemporaryDirectory(prefix="pocketnest-") as scratch:
        files, lines = wanted(runs, Path(scratch))
        plan = Plan(files=files, units=arguments.units, rounds=arguments.rounds)
        with opened(mac) as session:
            try:
                with tracked(console, mac.title, plan.steps) as advance:
                    found = measured(session, plan, advance)
            finally:
                session.close()
                if session.left is not None:
                    tell(session.left)
    paths = take_in(runs, found, tell)
    show(found, console)
    for line in (*lines, *map(str, paths)):
        tell(line)
    budgets = all(run.report().passed for run in runs if run.recipe.target.format == "coreml")
    checked = all(check.passed for file in found.files for check in file.golden)
    return checked and budgets
