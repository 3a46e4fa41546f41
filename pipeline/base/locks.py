"""Locks between processes: who makes a result, and whether that process still lives."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.machine import utc_now
from pipeline.base.safe_files import json_of, refuse_link, refuse_to_write

# The operating system's lock on the file is the lock (flock); what the file says is for people.
# The kernel lets go of it when its process ends, in whatever way, so that a killed one blocks
# nobody: no host name, boot or process number has to be judged. It is held by what `os.open`
# gave, so that threads of one process keep each other out as well (locks of `lockf` would not),
# and no program that is started inherits it. On a network file system the server keeps it, for
# all machines: NFS from Linux 2.6.12, where the lock of a machine that is gone ends with its lease
# (version 4, about 90 seconds) or when that machine is up again (version 3). SMB does likewise; a
# mount with `local_lock` or `nolock` keeps machines from seeing each other's locks, and then two
# of them may make the same result at once.

_POLL_SECONDS = 0.2
_LARGEST_PID = 2**31
_IN_USE = {errno.EAGAIN, errno.EACCES}
"""What file systems say of a lock that somebody else holds; EACCES is that of some networks."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lock, as it says itself.

    Attributes:
        host: name of its machine or container.
        pid: process number there.
        since: when it took the lock, such as 2026-11-29T14:05:00Z.
    """

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Owner:
    """The owner that this process is, of what it takes now."""
    return Owner(host=socket.gethostname(), pid=os.getpid(), since=utc_now())


@contextmanager
def held(lock: Path, wait: Callable[[Owner], None]) -> Iterator[None]:
    """Hold `lock`, a file beside others of its kind, while the block runs.

    Where a living process holds it, `wait` is called once with its owner, and the block runs when
    that one is done. Nobody depends on it for correctness: two who make the same result make it
    twice.

    Raises:
        InputError: something that is no file stands in its place, or the file system keeps no
            locks.
    """
    refuse_link(lock.parent)
    lock.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while (number := _try_to_take(lock)) is None:
        # The file is empty for the moment between the lock and the words of who has it.
        if not told and (owner := owner_of(lock)) is not None:
            wait(owner)
            told = True
        time.sleep(_POLL_SECONDS)
    try:
        with suppress(OSError):  # a full disk keeps the words out, not the lock
            os.ftruncate(number, 0)
            os.write(number, json.dumps(asdict(this_process())).encode())
        yield
    finally:
        _let_go(lock, number)


def is_held(lock: Path) -> bool:
    """Whether a living process holds a lock, on this machine or on another one."""
    try:
        number = os.open(lock, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:  # gone, or none
        return False
    try:
        return not _locked(number, fcntl.LOCK_SH, lock)
    finally:
        os.close(number)


def remove_lock(lock: Path) -> None:
    """Remove the file of a lock that an ended process left; one that is held stays."""
    with suppress(OSError):
        number = os.open(lock, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        if _locked(number, fcntl.LOCK_EX, lock):
            _let_go(lock, number)
        else:
            os.close(number)


def owner_of(lock: Path) -> Owner | None:
    """Who a lock says it belongs to; None where there is none that can be read."""
    try:
        owner = Owner(**json_of(lock))
    except (OSError, ValueError, TypeError):
        return None
    texts = isinstance(owner.host, str) and isinstance(owner.since, str)
    return owner if texts and type(owner.pid) is int and 0 < owner.pid < _LARGEST_PID else None


def _try_to_take(lock: Path) -> int | None:
    """Take a lock and return the descriptor that holds it; None where somebody else has it."""
    refuse_to_write(lock)
    number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
    try:
        # Who had it may have removed the file after it was opened here: then it is nobody's lock.
        if _locked(number, fcntl.LOCK_EX, lock) and _is_at(lock, number):
            return number
    except BaseException:
        os.close(number)
        raise
    os.close(number)
    return None


def _let_go(lock: Path, number: int) -> None:
    """Remove the file of a lock that is held here, then the lock, so that nobody takes both."""
    try:
        if _is_at(lock, number):
            lock.unlink(missing_ok=True)
        fcntl.flock(number, fcntl.LOCK_UN)  # a forked process may have the descriptor still
    finally:
        os.close(number)


def _locked(number: int, kind: int, lock: Path) -> bool:
    """Take the kernel's lock of a file without waiting, and say whether that went well.

    Raises:
        InputError: the file system keeps no locks.
    """
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _IN_USE:
            return False
        raise InputError(
            f"{lock}: the file system there keeps no locks ({error.strerror}); "
            "give --out a folder on another one"
        ) from error
    return True


def _is_at(lock: Path, number: int) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(number), os.lstat(lock))
    except FileNotFoundError:
        return False
