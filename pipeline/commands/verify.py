"""`pocketnest verify`: hash every file of a run again, and of the stages it was made from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipeline.base.checksums import damage
from pipeline.base.errors import printable
from pipeline.base.safe_files import real
from pipeline.base.store import STAGES_FILE, STORE
from pipeline.commands.arguments import completes_folders
from pipeline.commands.command import INTERNAL_ERROR, OK, Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the folder of a run."""
    completes_folders(parser.add_argument("run_dir", type=Path, metavar="RUN_DIR"))


def run(arguments: argparse.Namespace) -> int:
    """Say which files of a run are not as they were written.

    Raises:
        InputError: it is not the directory of a finished run.
    """
    looked_at, faults, notes = damaged(arguments.run_dir)
    for fault in faults:
        print(f"damaged: {printable(fault)}")
    for note in notes:
        print(f"note: {printable(note)}")
    whole = len(looked_at) - len(faults)
    print(f"{whole} of {len(looked_at)} directories are as they were written")
    return INTERNAL_ERROR if faults else OK


def damaged(directory: Path) -> tuple[list[Path], list[str], list[str]]:
    """Hash every file of a run again, and of the stage results that it was made from.

    Args:
        directory: of a run, or of a combined report.

    Returns:
        The directories that were looked at, a line for each that is not as it was written, and one
        for each run that was moved without its store.

    Raises:
        InputError: it is not the directory of a finished run.
    """
    from pipeline.stages.finished_run import open_runs

    looked_at: dict[Path, tuple[Path, bool]] = {}
    faults: dict[Path, str] = {}
    notes: list[str] = []
    for finished in open_runs(directory, checked=False):
        looked_at[real(finished.directory)] = (finished.directory, True)
        store = Path(os.path.normpath(finished.directory.parent / STORE))
        if not finished.has_store:
            notes.append(f"{store}: not there, so that the results of the stages are not looked at")
            continue
        for stage, result in finished.stages().items():
            named = Path(os.path.normpath(result))
            looked_at.setdefault(real(named), (named, False))
            if named.parent != store:
                faults[real(named)] = (
                    f"{finished.directory / STAGES_FILE}: says that stage {stage} is in {named}, "
                    f"which is not in {store}; run the recipe again"
                )
    for key, (result, more_allowed) in looked_at.items():
        if key not in faults and (fault := _fault(result, more_allowed)) is not None:
            faults[key] = f"{result}: {fault}"
    found = [result for result, _ in looked_at.values()]
    return found, list(faults.values()), list(dict.fromkeys(notes))


def _fault(directory: Path, more_allowed: bool) -> str | None:
    """What is wrong in a directory; what the disk does not give back counts, too."""
    try:
        return damage(directory, more_allowed=more_allowed)
    except PermissionError:
        raise  # a fault of who asks
    except OSError as error:
        return f"cannot be read ({error})"


VERIFY = Command(
    help="hash every file of a run and of its stages again: is it as it was written?",
    examples=("pocketnest verify artifacts/combined",),
    add_arguments=add_arguments,
    run=run,
)
