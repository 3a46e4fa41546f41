"""Faults of a file system, made by a library that is preloaded into every process of a run.

The library is compiled from shim.c beside this module. A plan lies in a small file that the
processes map; whoever writes the plan chooses the operation at which it strikes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")
PLAN = "SOAK_PLAN"
"""Environment variable that holds the file of the plan, for processes that start anew."""

COUNT, KILL, FAIL_WRITES, FAIL_READS, FAIL_OPENS, SHORT = 1, 2, 3, 4, 5, 6


class _Plan(ctypes.Structure):
    """`struct plan` of shim.c."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("error", ctypes.c_int),
        ("lasting", ctypes.c_int),
        ("struck", ctypes.c_int),
        ("countdown", ctypes.c_long),
        ("counted", ctypes.c_long * 3),
        ("directory", ctypes.c_char * 1024),
    )


class Plan:
    """A fault that strikes the processes which map `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(bytes(ctypes.sizeof(_Plan)))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._plan = _Plan.from_buffer(self._map)

    def arm(
        self, directory: Path, kind: int, *, after: int = 0, error: int = 0, lasting: bool = False
    ) -> None:
        """Strike below `directory`, after so many operations of the kind's class."""
        self.disarm()
        self._plan.directory = os.fsencode(directory)
        self._plan.error, self._plan.lasting = error, lasting
        self._plan.countdown, self._plan.struck = after, 0
        self._plan.kind = kind

    def disarm(self) -> None:
        """Strike nobody any more."""
        self._plan.kind = 0

    @property
    def struck(self) -> bool:
        """Whether the fault has struck since it was armed."""
        return bool(self._plan.struck)

    @property
    def counted(self) -> tuple[int, int, int]:
        """Reads, writes and opens that a plan to count has seen."""
        reads, writes, opens = self._plan.counted
        return reads, writes, opens

    def follow(self) -> None:
        """Have this process, and those it starts, map the plan; the library must be preloaded."""
        os.environ[PLAN] = str(self.file)
        if ctypes.CDLL(None).soak_map(os.fsencode(self.file)) != 0:
            raise OSError(f"{self.file}: the preloaded library could not map it")


def is_preloaded() -> bool:
    """Whether this process has the library."""
    return hasattr(ctypes.CDLL(None), "soak_map")


def preload(directory: Path) -> None:
    """Compile the library into `directory` and start this very command again with it.

    Raises:
        OSError: there is no C compiler.
        subprocess.CalledProcessError: it does not compile.
    """
    library = directory / "shim.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    environment = os.environ | {"LD_PRELOAD": str(library)}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


@contextmanager
def small_disk(directory: Path, megabytes: int) -> Iterator[bool]:
    """Mount a tmpfs of so many megabytes at `directory`; yields whether that is allowed here."""
    if directory.is_mount():  # of a soak that was killed
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
    mounted = _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def resize_disk(directory: Path, size_bytes: int) -> None:
    """Give the tmpfs at `directory` another size; what is there stays."""
    if not _mount("-o", f"remount,size={size_bytes}", str(directory)):
        raise OSError(f"{directory}: cannot be given {size_bytes} bytes")


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except OSError:
        return False
