"""A folder that all test processes of one session share, and things in it that are made once."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "POCKETNEST_TESTS"
"""Where the folder is; set by the first process, for those that it starts."""


def begin() -> Path | None:
    """Make the folder; None where a process before this one has."""
    if VARIABLE in os.environ:
        return None
    made = Path(tempfile.mkdtemp(prefix="pocketnest-tests-"))
    (made / "owner").write_text(str(os.getpid()))
    os.environ[VARIABLE] = str(made)
    return made


def begun() -> bool:
    """Whether there is such a folder: within a session of tests."""
    return VARIABLE in os.environ


def end(made: Path) -> None:
    """Take away the folder, by the process that made it."""
    del os.environ[VARIABLE]
    shutil.rmtree(made, ignore_errors=True)


def folder() -> Path:
    """The folder of this session."""
    return Path(os.environ[VARIABLE])


@contextmanager
def alone(name: str) -> Iterator[None]:
    """No two processes are in here with the same name at once."""
    with (folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first who asks makes; nobody changes it, who must change it copies it."""
    place, done = folder() / name, folder() / f"{name}.done"
    with alone(name):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            done.touch()
    return place
