"""What was measured on real devices, in the runs whose files it is of.

    take_in(runs, found, tell)

A run's folder is replaced as a whole: device.json, the report with a row for each device, and its
budgets, judged anew. Whatever measured, an adb lane, a Mac or a file of a device service, hands its
measurement here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pipeline.base.checksums import MANIFEST, listed
from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.safe_files import json_of, remove
from pipeline.base.store import LOCKS, MAKING, STORE, publish
from pipeline.measure.device import kept
from pipeline.measure.device.record import DEVICE, DeviceRecord, OnDevice
from pipeline.recipe.recipe import Recipe
from pipeline.report.records import COMBINED, Report
from pipeline.report.write import FILES, write_report
from pipeline.stages.assemble import with_devices
from pipeline.stages.combined import withdraw, write_combined
from pipeline.stages.finished_run import Finished, open_runs

Tell = Callable[[str], None]


def of_file(folder: Path, sha256: str) -> DeviceRecord | None:
    """What device.json of a folder says of a file; None where it says nothing of it.

    Raises:
        InputError: it cannot be read.
    """
    found = kept.read(folder)
    if found is None:
        return None
    machines = tuple(filter(None, (one.only(sha256) for one in found.machines)))
    return found.model_copy(update={"machines": machines}) if machines else None


def keep(folder: Path, into: Path, sha256: str) -> None:
    """Write what device.json of a folder says of a file into another one.

    Raises:
        InputError: it cannot be read.
    """
    if (found := of_file(folder, sha256)) is not None:
        kept.write(found, into)


def take_in(runs: Sequence[Finished], found: OnDevice, tell: Tell) -> list[Path]:
    """Put a measurement into every run whose file it is of; a combined report follows.

    Args:
        runs: finished ones.
        found: files that are of no run are left out.
        tell: shows a line to the person at the terminal.

    Returns:
        device.json of each run that it is of.

    Raises:
        InputError: it is of none of the runs' files; or a run cannot be read or written.
    """
    from pipeline.measure.timing import sha256_of

    own = [(run, found.only(sha256_of(run.file))) for run in runs]
    taken = [(run, part) for run, part in own if part is not None]
    if not taken:
        names = ", ".join(run.recipe.name for run in runs)
        raise InputError(
            f"{found.source.file or found.device.name}: none of its files is that of {names}, by "
            "SHA-256; measure the very file of the run"
        )
    paths = [_taken_in(run, part) for run, part in taken]
    for out in {run.directory.parent for run, _ in taken}:
        _combine_again(out, {run.recipe.name for run, _ in taken}, tell)
    return paths


def _taken_in(run: Finished, found: OnDevice) -> Path:
    from pipeline.measure.timing import sha256_of

    with _locked(run):
        record = kept.with_newer(of_file(run.directory, sha256_of(run.file)), found)
        _publish(run, with_record(run.recipe, run.report(), record), record)
    return run.directory / DEVICE


def with_record(recipe: Recipe, report: Report, record: DeviceRecord) -> Report:
    """The report of a run with what its device.json says."""
    (target,) = report.targets
    target = with_devices(recipe, target, record.machines)
    # Made anew, so that what a report must hold is checked.
    fields = dict(report) | {"targets": (target,), "passed": target.passed}
    return Report(**fields)


def _locked(run: Finished) -> AbstractContextManager[None]:
    """Alone among those that write the run's folder; a run that was moved has none but its own."""
    if not run.has_store:
        return nullcontext()
    lock = run.directory.parent / STORE / LOCKS / f"publish-{run.recipe.name}.json"
    return held(lock, lambda owner: None)


def _publish(run: Finished, report: Report, record: DeviceRecord) -> None:
    """Replace the run's folder by one with this report and record, and all that it had besides."""
    final = run.directory
    scratch = final.parent / f"{MAKING}-{final.name}"
    remove(scratch)  # of a process that was killed
    sealed = listed(final)
    anew = {*FILES, DEVICE}
    for name in sealed:
        if name not in anew:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(final / name, scratch / name)
    kept.write(record, scratch)
    write_report(report, scratch)
    top = {Path(name).parts[0] for name in sealed} | anew
    beside = [final / name for name in os.listdir(final) if name not in top]
    publish(scratch, final, beside=[path for path in beside if path.name != MANIFEST])


def _combine_again(out: Path, names: set[str], tell: Tell) -> None:
    """Write the report of several recipes anew, where one of these runs is in it."""
    folder = out / COMBINED
    try:
        told = {str(one["name"]) for one in json_of(folder / "report.json")["targets"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not told & names or folder.is_symlink() or (folder / "recipe.yaml").exists():
        return
    try:
        reports = [run.report() for run in open_runs(folder)]
    except InputError as error:
        tell(f"{folder}: withdrawn, since a run of it cannot be read: {error}")
        withdraw(out, next(iter(told & names)))
        return
    write_combined(reports, out, tell)
