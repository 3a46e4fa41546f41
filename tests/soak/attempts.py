"""Attempts: one command of the real command line in a process of its own, ended at will.

The process is forked from one that has everything heavy imported, which saves seconds of each.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.soak.faults import Plan
from tests.soak.sandbox import command_line

_SUBREAPER = 36
"""`PR_SET_CHILD_SUBREAPER` of prctl(2): children of a killed child become ours."""
_POLL_SECONDS = 0.005
LIMIT_SECONDS = 300.0
"""An attempt takes longer only if it hangs."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How one command ended.

    Attributes:
        status: exit code, or the negative number of the signal that ended it.
        seconds: it took.
        reaction: seconds from the signal that it was sent to its end; None where none was sent.
        stdout: what it printed.
        stderr: what it printed there.
    """

    status: int
    seconds: float
    reaction: float | None
    stdout: str
    stderr: str


def adopt_orphans() -> None:
    """Become the parent of what a killed child leaves running."""
    if ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl: cannot adopt orphans")


def orphans_left(seconds: float) -> int:
    """How many adopted processes still run after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            number, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if number == 0:
            if time.monotonic() > deadline:
                return 1
            time.sleep(_POLL_SECONDS)


def attempt(
    arguments: Sequence[str],
    folder: Path,
    plan: Plan,
    signals: Sequence[tuple[float, signal.Signals]] = (),
) -> Attempt:
    """Run one command.

    Args:
        arguments: of the command line.
        folder: for what it prints.
        plan: of the faults, armed or not.
        signals: to send, each with seconds since the start or since the one before.
    """
    return _followed(_started(arguments, folder, plan), folder, signals)


def two_at_once(arguments: Sequence[str], folder: Path, plan: Plan) -> list[Attempt]:
    """Run the same command twice, at the same time."""
    folders = [folder / "one", folder / "other"]
    numbers = [_started(arguments, place, plan) for place in folders]
    return [_followed(number, place, ()) for number, place in zip(numbers, folders, strict=True)]


def _started(arguments: Sequence[str], folder: Path, plan: Plan) -> int:
    folder.mkdir(exist_ok=True)
    number = os.fork()
    if number == 0:
        _be_the_command(arguments, folder, plan)
    return number


def _followed(
    number: int, folder: Path, signals: Sequence[tuple[float, signal.Signals]]
) -> Attempt:
    """Send signals to a process when they are due, and wait for its end."""
    began = since = time.monotonic()
    sent, due = None, list(signals)
    while True:
        ended, status = os.waitpid(number, os.WNOHANG)
        now = time.monotonic()
        if ended:
            break
        if due and now >= since + due[0][0]:
            os.kill(number, due.pop(0)[1])
            sent = since = now
        if now - began > LIMIT_SECONDS:
            os.kill(number, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return Attempt(
        status=os.waitstatus_to_exitcode(status),
        seconds=now - began,
        reaction=None if sent is None else now - sent,
        stdout=(folder / "stdout").read_text(errors="replace"),
        stderr=(folder / "stderr").read_text(errors="replace"),
    )


def _be_the_command(arguments: Sequence[str], folder: Path, plan: Plan) -> None:
    """In a forked process: become the command. Does not return."""
    status = 1
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        os.environ["NO_COLOR"] = "1"
        random.seed()  # a process of its own has random numbers of its own
        np.random.seed()
        plan.follow()
        status = command_line(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
