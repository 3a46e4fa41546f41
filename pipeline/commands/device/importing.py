"""`pocketnest device --import`: times of a device service or another tool in a run's report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pipeline.base.errors import InputError, printable
from pipeline.commands.device.measure import show
from pipeline.measure.device.imports.on_device import TimedFile, on_device
from pipeline.measure.device.imports.read import read
from pipeline.measure.device.imports.reading import Reading
from pipeline.measure.timing import sha256_of, size_bytes
from pipeline.stages.devices import take_in
from pipeline.stages.finished_run import Finished


def import_file(arguments: argparse.Namespace, runs: Sequence[Finished], console: Console) -> bool:
    """Read a file, show what it says, and put it into the run that it is said to be of.

    Args:
        arguments: of the command.
        runs: that it may be of; none where no run was named, and it is shown alone.
        console: the terminal.

    Returns:
        Whether all budgets of that run are kept.

    Raises:
        InputError: the file cannot be used, or is of none of the runs' files, or may be of several.
    """

    def tell(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False)

    path: Path = arguments.imported
    reading = read(path)
    run = _timed_run(path, reading, runs) if runs else None
    timed = None if run is None else _timed_file(run)
    found = on_device(reading, path, device=arguments.name, timed=timed)
    paths = [] if run is None else take_in([run], found, tell)
    show(found, console)
    for written in paths:
        tell(str(written))
    if run is None:
        tell("nothing was written: give the RUN_DIR of the file that was timed")
        return True
    return run.report().passed


def _timed_run(path: Path, reading: Reading, runs: Sequence[Finished]) -> Finished:
    """The run whose file was timed, by its format.

    Raises:
        InputError: it may be of several.
    """
    fitting = [run for run in runs if reading.format in (None, run.recipe.target.format)]
    if len(fitting) > 1:
        names = ", ".join(run.recipe.name for run in fitting)
        raise InputError(f"{path}: may be of {names}; give the folder of one run")
    return fitting[0] if fitting else runs[0]


def _timed_file(run: Finished) -> TimedFile:
    target = run.recipe.target
    return TimedFile(
        name=run.recipe.name,
        format=target.format,
        precision=target.precision,
        sha256=sha256_of(run.file),
        size=size_bytes(run.file),
    )
