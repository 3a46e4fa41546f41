"""Child processes at the same time: as many as the machine has room for, and ended together."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.base.machine import cores
from pipeline.base.profile import for_children, span

CHILD_BYTES = 3 * 2**30
"""Memory that the largest child takes: TensorFlow's converter on an unpruned ResNeSt-50."""


class Children:
    """Child processes that are started from several threads and can be ended together."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended = False
        self._lock = threading.Lock()

    @span("wait", "a child process")
    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run a command to its end and return its exit status; below 0, a signal ended it.

        Raises:
            RuntimeError: `end` was called before.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError(f"not started, because the others were ended: {command}")
            process = subprocess.Popen(
                command,
                env={**environment, **for_children()},
                stdin=subprocess.PIPE,  # closed when this process ends, in whatever way
                start_new_session=True,  # what is typed at the terminal is this process's to answer
            )
            self._running.append(process)
        try:
            return process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()  # where the wait was interrupted; nothing happens to an ended process
            process.wait()
            with self._lock:
                self._running.remove(process)

    def end(self) -> None:
        """End those that run; no more can be started."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def end_with_parent() -> None:
    """In a child of `Children`: end as soon as the parent is gone, were it killed."""

    def wait() -> None:
        # Not through sys.stdin: the interpreter could not take its lock when it shuts down.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def at_once(count: int) -> int:
    """How many of `count` children to run at the same time, by cores and free memory."""
    free = free_bytes()
    room = count if free is None else free // CHILD_BYTES
    return max(1, min(count, cores(), room))


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that new processes can take, of the machine and of a container; None if unknown.

    Read from `MemAvailable` in /proc/meminfo, and from the limit of the control group (version 2).
    What that group uses includes cached files; `inactive_file` of them the kernel gives up first.
    """
    try:
        free = _numbers(root / "proc/meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return None
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return min(free, limit - used + _numbers(group / "memory.stat")["inactive_file"])
    except (OSError, KeyError, ValueError):  # no such files, or a limit of "max"
        return free


def _numbers(path: Path) -> dict[str, int]:
    """First word of every line, and the number after it."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return {words[0]: int(words[1]) for words in lines}
