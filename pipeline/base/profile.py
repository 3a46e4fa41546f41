"""Where the seconds and the memory of a run go, told by every process that works on it.

    with span("trace", "the quantized program"):
        ...

Where nobody asked for a profile, a span costs nothing. Otherwise each process writes into a file
of its own, a JSON object a line: a span when it ends, and the memory it holds 20 times a second.
Spans of a thread lie within one another; the seconds of a span that lie in no other are its own.
"""

from __future__ import annotations

import builtins
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

Kind = Literal[
    "stage",
    "import",
    "decode",
    "train",
    "evaluate",
    "trace",
    "convert",
    "compare",
    "time",
    "compress",
    "hash",
    "render",
    "wait",
]
"""What is done in a span. `wait` is for other processes, whose own spans say what they did."""

TRACE, PAGE = "profile.json", "profile.html"
"""Files that are made of it, in the folder of all runs."""

_FOLDER, _STAGE = "POCKETNEST_PROFILE", "POCKETNEST_PROFILE_STAGE"
_STARTED = "POCKETNEST_PROFILE_STARTED"
"""Told to child processes: the folder, the stage that they work for, and when they were started."""
_SECONDS_BETWEEN = 0.05
_SHORTEST_IMPORT = 1e-3
_STATM = Path("/proc/self/statm")


@dataclass
class _Open:
    """A span that has not ended."""

    kind: Kind
    name: str
    started: float
    cpu: float
    inner: float = 0.0
    inner_cpu: float = 0.0


@dataclass
class _Recorder:
    """Writes what this process does."""

    folder: Path
    stage: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    local: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.file = (self.folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8")

    def open_spans(self) -> list[_Open]:
        """Of this thread, the outermost first."""
        if not hasattr(self.local, "spans"):
            self.local.spans = []
        found: list[_Open] = self.local.spans
        return found

    def stage_now(self) -> str:
        """The stage that this thread works for."""
        stages = [one.name for one in self.open_spans() if one.kind == "stage"]
        return stages[-1] if stages else self.stage

    def write(self, record: Mapping[str, object]) -> None:
        """Write a line."""
        line = json.dumps({"pid": os.getpid(), **record}) + "\n"
        with self.lock:
            self.file.write(line)
            self.file.flush()

    def watch_memory(self) -> None:
        """Write how much memory the process holds, for as long as it is recorded."""
        while _recorder is self and (held := _held_bytes()) is not None:
            self.write({"at": time.monotonic(), "bytes": held})
            time.sleep(_SECONDS_BETWEEN)


_recorder: _Recorder | None = None


@contextmanager
def recording(folder: Path) -> Iterator[None]:
    """Record what this process and its children do inside.

    Args:
        folder: gets a file for every process; it is there, and empty.
    """
    global _recorder
    original = builtins.__import__
    _start(folder)
    try:
        yield
    finally:
        builtins.__import__, _recorder = original, None


def _start(folder: Path) -> None:
    global _recorder
    _recorder = _Recorder(folder, os.environ.get(_STAGE, ""))
    threading.Thread(target=_recorder.watch_memory, daemon=True).start()
    builtins.__import__ = _timed(builtins.__import__)


def start_in_child() -> None:
    """Record what this process does where the one that started it is recorded.

    To be called first of all: what the interpreter took to come here is a span, too.
    """
    if (folder := os.environ.get(_FOLDER)) is None:
        return
    _start(Path(folder))
    assert _recorder is not None
    began = float(os.environ.get(_STARTED, time.monotonic()))
    took = time.monotonic() - began
    _write_span(_Open("import", "Python", began, 0.0), took, time.process_time(), 0)


def for_children(stage: str | None = None) -> dict[str, str]:
    """What a child process is to find in its environment; {} where nothing is recorded.

    Args:
        stage: that it works for; without it, the one that this thread works for.
    """
    if _recorder is None:
        return {}
    return {
        _FOLDER: str(_recorder.folder),
        _STAGE: stage or _recorder.stage_now(),
        _STARTED: str(time.monotonic()),
    }


@contextmanager
def span(kind: Kind, name: str) -> Iterator[None]:
    """What is done inside is of a kind; also a decorator. Spans of a kind may lie in one another.

    Args:
        kind: see `Kind`.
        name: what it is done to, for a person.
    """
    if _recorder is None:
        yield
        return
    with _recorded(kind, name):
        yield


@contextmanager
def _recorded(kind: Kind, name: str, shortest: float = 0.0) -> Iterator[None]:
    assert _recorder is not None
    spans = _recorder.open_spans()
    this = _Open(kind, name, time.monotonic(), time.process_time())
    spans.append(this)
    try:
        yield
    finally:
        spans.pop()
        took, cpu = time.monotonic() - this.started, time.process_time() - this.cpu
        if took >= shortest:
            if spans:
                spans[-1].inner += took
                spans[-1].inner_cpu += cpu
            _write_span(this, took, cpu, len(spans))


def _write_span(this: _Open, took: float, cpu: float, depth: int) -> None:
    assert _recorder is not None
    _recorder.write(
        {
            "kind": this.kind,
            "name": this.name,
            "stage": this.name if this.kind == "stage" else _recorder.stage_now(),
            "thread": threading.get_ident(),
            "depth": depth,
            "at": this.started,
            "seconds": took,
            "own": took - this.inner,
            "cpu": cpu,
            "own_cpu": cpu - this.inner_cpu,
        }
    )


def _timed(original: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    """An import statement that is a span where it loads something; not within another import."""

    @functools.wraps(original)
    def timed(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        loaded = level > 0 or name in sys.modules
        if loaded or any(one.kind == "import" for one in _open_spans()):
            return original(name, globals, locals, fromlist, level)
        with _recorded("import", name.partition(".")[0], _SHORTEST_IMPORT):
            return original(name, globals, locals, fromlist, level)

    return timed


def _open_spans() -> list[_Open]:
    assert _recorder is not None
    return _recorder.open_spans()


def _held_bytes() -> int | None:
    """Memory that this process holds; None where the system does not say it in a file."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
