"""A phone's measurement from its beginning to the run's report, with what is seen of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.base.console import tracked
from pipeline.base.errors import printable
from pipeline.commands.device.wanted import wanted
from pipeline.measure.device.phone import Plan, measured
from pipeline.measure.device.record import OnDevice
from pipeline.measure.lanes.adb.adb import Adb
from pipeline.measure.lanes.adb.folder import Folder, sweep
from pipeline.report import device
from pipeline.stages.devices import take_in
from pipeline.stages.finished_run import Finished


def measure(
    arguments: argparse.Namespace, runs: Sequence[Finished], phone: Adb, console: Console
) -> bool:
    """Measure the files of runs on a phone and put what came of it into the runs.

    Args:
        arguments: of the command.
        runs: whose files.
        phone: that is connected.
        console: the terminal.

    Returns:
        Whether all answers were right, and all budgets of these runs are kept.

    Raises:
        InputError: see `phone.measured`.
    """

    def tell(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False)

    files, not_run = wanted(runs)
    plan = Plan(
        files=files, runner=arguments.runner, units=arguments.units, rounds=arguments.rounds
    )
    for left in sweep(phone):
        tell(f"removed from {phone.serial}, left by an earlier call: {left}")
    folder = Folder(phone=phone)
    try:
        with tracked(console, phone.serial, plan.steps) as advance:
            found = measured(phone, plan, folder, advance)
    finally:
        if folder.left is not None:
            tell(folder.left)
    paths = take_in(runs, found, tell)
    show(found, console)
    for name, why in not_run.items():
        tell(f"{name}: not run: {why}")
    for path in paths:
        tell(str(path))
    budgets = all(run.report().passed for run in runs if run.recipe.name not in not_run)
    return found.sound and budgets


def show(found: OnDevice, console: Console) -> None:
    """Print a row for each file, unit and number of threads, and what there is to say."""
    console.print(device.described(found), highlight=False, markup=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in device.HEADINGS:
        table.add_column(heading, justify="right")
    for file in found.files:
        for row in device.file_rows(file):
            table.add_row(escape(file.name), *map(escape, row))
    console.print(table)
    for line in device.lines_of(found):
        console.print(printable(line), highlight=False, markup=False)
    console.print(device.MEANING, highlight=False)
