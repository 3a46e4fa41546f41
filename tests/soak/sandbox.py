"""One command in a child process of its own, and everything that it must not do.

The child is forked from a process that has imported all there is to import (`warm`), so that a
command takes as long as its work. It may write into the case's `out` and `tmp` alone; it may not
run other programs but this Python, nor unpickle anything; it has a time limit and a memory limit.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import printable
from tests.soak.watch import watch

SECONDS = 60.0
MEMORY_BYTES = 4 * 2**30
_POLL_SECONDS = 0.05
_WAITS = re.compile(r"^  \w+: waiting for process ", re.MULTILINE)
_SECONDS_TO_WAIT = 5.0
"""A command that waits for a lock, and says so, is not waited for longer: nobody holds one."""

OK, REFUSED = "ok", "refused"
GOOD = (OK, REFUSED)
"""Outcomes that are no faults."""


@dataclass(frozen=True)
class Place:
    """The folders of one case.

    Attributes:
        root: of all of them.
        quick: whether commands that take seconds are to be left out.
    """

    root: Path
    quick: bool = False

    @property
    def out(self) -> Path:
        """Output directory: the command may write here."""
        return self.root / "out"

    @property
    def tmp(self) -> Path:
        """Temporary files: the command may write here."""
        return self.root / "tmp"

    @property
    def given(self) -> Path:
        """What the command reads."""
        return self.root / "given"

    @property
    def base(self) -> Path:
        """What all cases of a share are made from; only read."""
        return self.root.parent / "base"

    @property
    def canary(self) -> Path:
        """Files that links and `..` lead to; nothing may change here."""
        return self.root / "canary"

    def make(self) -> None:
        """Make the folders and the files of the canary."""
        for folder in (self.out, self.tmp, self.given, self.canary / "folder"):
            folder.mkdir(parents=True)
        (self.canary / "file").write_text("as it was\n")
        (self.canary / "folder" / "file").write_text("as it was\n")

    def state(self, left_out: Sequence[Path] = ()) -> dict[str, tuple[int, ...]]:
        """What would show a change outside of `out` and `tmp`, by path."""
        found, out = {}, tuple(map(str, left_out))
        for folder in (self.given, self.canary):
            for at, folders, files in os.walk(folder):
                for name in (*folders, *files, "."):
                    path = os.path.join(at, name)
                    if out and path.startswith(out):
                        continue
                    s = os.lstat(path)
                    found[path] = (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        found["."] = (hash(tuple(sorted(os.listdir(self.root)))),)
        return found


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command to run.

    Attributes:
        argv: its arguments.
        names: what a refusal must name, one of them.
        must_refuse: whether success would be a fault.
        allowed: more folders that may be written to, because the arguments name them.
    """

    argv: Sequence[str]
    names: Sequence[str]
    must_refuse: bool = False
    allowed: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a command.

    Attributes:
        kind: ok, refused, traceback, waits, crash, hang, memory, wrote outside, bad message or
            accepted (what had to be refused).
        code: exit code; below 0, a signal.
        seconds: that it took.
        peak_bytes: of its memory.
        detail: what shows a fault.
        text: all that it printed.
    """

    kind: str
    code: int
    seconds: float
    peak_bytes: int
    detail: str
    text: str

    @property
    def good(self) -> bool:
        """Whether this is no fault."""
        return self.kind in GOOD


def warm() -> None:
    """Import everything that a command may import, and run nothing that starts threads."""
    import ai_edge_litert.interpreter
    import ai_edge_litert.schema_py_generated  # noqa: F401

    from pipeline.formats.coreml.imports import import_coremltools

    import_coremltools()
    import coremltools.libmilstoragepython
    import coremltools.proto.MIL_pb2  # noqa: F401
    import onnxruntime  # noqa: F401

    import pipeline.commands.bundle.write
    import pipeline.commands.compare.changes
    import pipeline.commands.debug.layers
    import pipeline.commands.inspect.layers
    import pipeline.commands.predict.classify
    import pipeline.stages.finished_run  # noqa: F401

    warm_run()


def warm_run() -> None:
    """Import what `run` needs for its first stages."""
    import PIL.Image
    import sklearn.datasets  # noqa: F401
    import torch

    from pipeline.stages import graph
    from pipeline.stages.schedule import code_hash

    # What is drawn before the fork must start no threads: a forked child would wait for them.
    torch.set_num_threads(1)
    PIL.Image.init()
    for stage in graph.STAGES:
        for name in stage.code:
            code_hash(name)
    gc.collect()
    gc.freeze()


def command_line(argv: Sequence[str]) -> int:
    """The program's own command line."""
    from pipeline.__main__ import main

    try:
        return main(argv)
    except SystemExit as end:  # of argparse
        return end.code if isinstance(end.code, int) else 1


def run(
    case: Case,
    place: Place,
    *,
    program: Callable[[Sequence[str]], int] = command_line,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Outcome:
    """Run a command in a child process and judge what it did.

    Args:
        case: the command.
        place: its folders, made.
        program: what is called with the arguments.
        seconds: time limit.
        memory_bytes: limit of resident memory, above what importing took.
    """
    before = place.state(case.allowed)
    own_bytes = _own_bytes()
    printed, said = (place.root.with_suffix(end) for end in (".printed", ".watched"))
    started = time.monotonic()
    with printed.open("wb") as output, said.open("wb") as watched:
        pid = os.fork()
        if pid == 0:
            _in_child(case, place, program, output.fileno(), watched.fileno())
    ended, status, usage = _wait(pid, printed, seconds, memory_bytes + own_bytes)
    taken = time.monotonic() - started
    text, seen = (p.read_text("utf-8", "replace") for p in (printed, said))
    printed.unlink()
    said.unlink()
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024 - own_bytes
    kind, detail = _judged(case, code, text, ended, peak > memory_bytes)
    if seen:
        kind, detail = "wrote outside", seen
    elif changed := _changes(before, place.state(case.allowed)):
        kind, detail = "wrote outside", changed
    return Outcome(
        kind=kind, code=code, seconds=taken, peak_bytes=max(peak, 0), detail=detail, text=text
    )


def _in_child(
    case: Case,
    place: Place,
    program: Callable[[Sequence[str]], int],
    output: int,
    watched: int,
) -> None:
    """Run the command and end the process."""
    code = 99
    try:
        os.setsid()
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = os.fdopen(
            2, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1
        )
        os.chdir(place.given)
        os.environ.update({"TMPDIR": str(place.tmp), "NO_COLOR": "1", "COLUMNS": "200"})
        tempfile.tempdir = None  # it is looked up anew
        watch([place.out, place.tmp, *case.allowed], watched)
        code = program(case.argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(
    pid: int, printed: Path, seconds: float, memory_bytes: int
) -> tuple[str, int, resource.struct_rusage]:
    """Wait for a child; end it at its limits. Returns why it was ended, and how it ended."""
    ended, passed, last = "", 0.0, time.monotonic()
    waiting = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(waiting, select.POLLIN)
        while not poll.poll(_POLL_SECONDS * 1000):
            # While this process is stopped, so is the child: such a pause is no hang.
            now = time.monotonic()
            passed, last = passed + min(now - last, 1.0), now
            if _resident_bytes(pid) > memory_bytes:
                ended = "memory"
            elif passed > seconds:
                ended = "hang"
            elif passed > _SECONDS_TO_WAIT and _WAITS.search(printed.read_text("utf-8", "replace")):
                ended = "waits"
            if ended:
                _kill_all(pid)
                break
    finally:
        os.close(waiting)
    _, status, usage = os.wait4(pid, 0)
    _kill_all(pid)  # what it started and left behind
    return ended, status, usage


def _kill_all(group: int) -> None:
    for call in (os.killpg, os.kill):
        try:
            call(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _own_bytes() -> int:
    """What a forked child has from the start: files that are mapped come later, by use."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def _judged(case: Case, code: int, text: str, ended: str, too_large: bool) -> tuple[str, str]:
    """The kind of an outcome and what shows it, by all but what was written."""
    if ended or too_large:
        return ended or "memory", text[-2000:]
    if "Traceback (most recent call last)" in text:
        return "traceback", text[-4000:]
    if code < 0:
        return "crash", f"{signal.Signals(-code).name}\n{text[-2000:]}"
    if code in (0, 3):
        return ("accepted", text[-2000:]) if case.must_refuse else (OK, "")
    if code in (1, 2) and (fault := _message_fault(case, text)) is None:
        return REFUSED, ""
    return "bad message", f"exit {code}, {fault if code in (1, 2) else 'unknown'}\n{text[-2000:]}"


def _message_fault(case: Case, text: str) -> str | None:
    """What is wrong with how a refusal says why; None where nothing is."""
    start = re.search(r"^(?:\S+ ?\w*: )?(?:error|damaged): ", text, re.MULTILINE)
    if start is None:
        return "no line begins with 'error: '"
    message = text[start.start() :]
    if not all(line.isprintable() for line in message.removesuffix("\n").split("\n")):
        return "control characters"
    if not any(printable(name) in message for name in case.names):
        return f"names none of {', '.join(case.names)}"
    return None


def _changes(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> str:
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    return "".join(f"changed: {path}\n" for path in changed)
