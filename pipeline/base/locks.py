"""Locks between processes: who makes a result, and whether that process still lives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from pipeline.base.safe_files import json_of, refuse_link, refuse_to_write

_POLL_SECONDS = 0.2
_LARGEST_PID = 2**31
_CLOCK_SECONDS = 5.0
"""Start times of one process, read at different times, differ by less where the clock is set."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: name of the machine.
        space: boot of the machine and namespace, within which a process number means something.
        pid: process number.
        started: seconds since 1970; another process may have the same number later.
    """

    host: str
    space: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Owner:
    """The owner that this process is."""
    pid = os.getpid()
    started = psutil.Process(pid).create_time()
    return Owner(host=socket.gethostname(), space=_space(), pid=pid, started=started)


def is_dead(owner: Owner) -> bool:
    """Whether a process is known to have ended; of another machine's nothing is known."""
    if owner.host != socket.gethostname():
        return False
    boot, _, namespace = owner.space.partition(" ")
    here_boot, _, here_namespace = _space().partition(" ")
    if boot != here_boot:
        return True
    if namespace != here_namespace:
        return False
    try:
        process = psutil.Process(owner.pid)
        ended = process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
        return ended or abs(process.create_time() - owner.started) > _CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@contextmanager
def held(lock: Path, wait: Callable[[Owner], None]) -> Iterator[None]:
    """Hold `lock`, a file beside others of its kind, while the block runs.

    Where a living process holds it, `wait` is called once with its owner, and the block runs when
    that one is done. A dead process's lock is taken over. Nobody depends on it for correctness:
    two who make the same result make it twice.
    """
    mine = this_process()
    told = False
    while (owner := _try_to_take(lock, mine)) is not None:
        if not told:
            wait(owner)
            told = True
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        with _alone(lock.parent):
            if owner_of(lock) == mine:
                lock.unlink(missing_ok=True)


def owner_of(lock: Path) -> Owner | None:
    """Who a lock says it belongs to; None where there is none that can be read."""
    try:
        owner = Owner(**json_of(lock))
    except (OSError, ValueError, TypeError):
        return None
    texts = isinstance(owner.host, str) and isinstance(owner.space, str)
    numbers = type(owner.pid) is int and isinstance(owner.started, int | float)
    return owner if texts and numbers and 0 < owner.pid < _LARGEST_PID else None


def _try_to_take(lock: Path, mine: Owner) -> Owner | None:
    """Take a lock, or return the living owner who has it."""
    refuse_link(lock.parent)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _alone(lock.parent):
        owner = owner_of(lock)
        if owner is not None and not is_dead(owner):
            return owner
        scratch = lock.with_name(f".{lock.name}.{mine.pid}")
        scratch.unlink(missing_ok=True)
        with scratch.open("x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(mine)))
        scratch.replace(lock)
    return None


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other processes from looking at the locks of a directory for a moment.

    The kernel lets go of this one when its process ends, in whatever way.
    """
    mutex = directory / ".mutex"
    refuse_to_write(mutex)
    number = os.open(mutex, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def _space() -> str:
    """Where the numbers of processes belong to: this boot, and this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return " "
