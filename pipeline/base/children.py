"""Child processes at the same time: as many as the machine has room for, and ended together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.base.machine import cores
from pipeline.base.profile import for_children, span

CHILD_BYTES = 3 * 2**30
"""Memory that the largest child takes: TensorFlow's converter on an unpruned ResNeSt-50."""


@dataclass(frozen=True, kw_only=True)
class Early:
    """A child that is started before its work is known, and told it in a line (`told_work`).

    Attributes:
        command: that starts it.
        environment: of it.
        stage: that it will work for, as a profile has it.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    stage: str


class Children:
    """Child processes that are started from several threads and can be ended together.

        with Children() as children:
            children.run(["true"], os.environ)

    Attributes:
        early: those that `start_early` starts, by a name for what they can do.
    """

    def __init__(self) -> None:
        self.early: dict[str, Early] = {}
        self._waiting: dict[str, subprocess.Popen[bytes]] = {}
        self._running: list[subprocess.Popen[bytes]] = []
        self._ended = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Nothing is started yet."""
        return self

    def __exit__(self, *error: object) -> None:
        """As `end`: none outlives this."""
        self.end()

    def start_early(self) -> None:
        """Start the children of `early` that the machine has room for; each loads what it needs.

        A child whose work never comes ends with this process.
        """
        with self._lock:
            left = {name: one for name, one in self.early.items() if name not in self._waiting}
            for name in list(left)[: at_once(len(left))] if left and not self._ended else ():
                told = for_children(left[name].stage)
                environment = {**left[name].environment, **told}
                self._waiting[name] = _started(left[name].command, environment)

    @span("wait", "a child process")
    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        early: tuple[str, Sequence[str]] | None = None,
    ) -> int:
        """Run a command to its end and return its exit status; below 0, a signal ended it.

        Args:
            command: with its arguments.
            environment: of the child.
            early: name and work of a child that may have been started before, for the same.

        Raises:
            RuntimeError: `end` was called before.
        """
        with self._lock:
            if self._ended:
                raise RuntimeError(f"not started, because the others were ended: {command}")
            process = None
            if early is not None and (waiting := self._waiting.pop(early[0], None)) is not None:
                process = waiting if _tell(waiting, early[1]) else None
            if process is None:
                process = _started(command, {**environment, **for_children()})
            self._running.append(process)
        try:
            return process.wait()
        finally:
            _gone(process)  # where the wait was interrupted; nothing happens to an ended process
            with self._lock:
                self._running.remove(process)

    def end(self) -> None:
        """End those that run; no more can be started."""
        with self._lock:
            self._ended = True
            for process in (*self._running, *self._waiting.values()):
                process.terminate()
            for process in self._waiting.values():
                _gone(process)
            self._waiting.clear()


def _started(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,  # closed when this process ends, in whatever way
        start_new_session=True,  # what is typed at the terminal is this process's to answer
    )


def _tell(process: subprocess.Popen[bytes], words: Sequence[str]) -> bool:
    """Give a child that waits its work; False where it has ended."""
    assert process.stdin is not None
    try:
        process.stdin.write(f"{json.dumps(list(words))}\n".encode())
        process.stdin.flush()
    except OSError:
        _gone(process)
        return False
    return True


def _gone(process: subprocess.Popen[bytes]) -> None:
    """Have a child end, if it has not, and forget it."""
    process.kill()
    process.wait()
    assert process.stdin is not None
    with suppress(OSError):  # what it was not told
        process.stdin.close()


def told_work() -> list[str]:
    """In a child that was started early: the words of its work; it ends where none comes."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    if not line:
        sys.exit(0)
    words: list[str] = json.loads(line)
    return words


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
