"""Where the seconds and the memory of a run went: a table, a page, a trace for other viewers."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from pipeline.base import profile
from pipeline.base.profile import PAGE, TRACE
from pipeline.base.safe_files import refuse_outputs
from pipeline.base.templates import templates

_KINDS = [kind for kind in get_args(profile.Kind) if kind not in ("stage", "wait")]
_OTHER = "other"
RUN = "run"
"""The stage of what belongs to none."""
_ROW, _WIDTH, _NARROWEST = 18, 1200, 0.3
"""Of the page: pixels of a row, of the whole, and of the least span that is drawn."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """What a thread did for some time; see `pipeline.base.profile`.

    Attributes:
        kind: of it.
        name: what was done.
        stage: that it was done for.
        pid: of the process.
        thread: of the process.
        depth: how many others it lies in.
        at: when it began, in seconds.
        seconds: that it took.
        own: those of them that no span inside took.
        cpu: seconds that all cores computed for the process meanwhile.
        own_cpu: those of them outside the spans inside.
    """

    kind: str
    name: str
    stage: str
    pid: int
    thread: int
    depth: int
    at: float
    seconds: float
    own: float
    cpu: float
    own_cpu: float

    @property
    def end(self) -> float:
        """When it ended, in seconds."""
        return self.at + self.seconds


@dataclass(frozen=True, kw_only=True)
class Held:
    """The memory that a process held at a moment: seconds, and bytes."""

    pid: int
    at: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One stage, or what is done before and after all of them.

    Attributes:
        stage: its name.
        seconds: from its beginning to its end; of several results of it, all of them.
        kinds: own seconds of each kind, of all threads and processes; they may be more than
            `seconds` where several work at a time.
        cpu: seconds that the cores computed for it.
        most_bytes: that one process held meanwhile; None where the system does not say.
    """

    stage: str
    seconds: float
    kinds: Mapping[str, float]
    cpu: float
    most_bytes: int | None


@contextmanager
def profiled(out: Path, console: Console, *, wanted: bool) -> Iterator[None]:
    """Profile what is done inside, where that is wanted: show the table, and write page and trace.

    Args:
        out: where they are written.
        console: where the table is shown.
        wanted: otherwise nothing happens.

    Raises:
        InputError: they cannot be written there.
    """
    if not wanted:
        yield
        return
    refuse_outputs(files=[out / PAGE, out / TRACE])
    with tempfile.TemporaryDirectory() as folder:
        try:
            with profile.recording(Path(folder)), profile.span("stage", RUN):
                yield
        finally:  # of a run that fails or is interrupted, too
            spans, held = read(Path(folder))
            _write(spans, held, out)
            console.print(table(rows(spans, held)))
            console.print(f"profile: {out / PAGE}, {out / TRACE}", highlight=False)


def read(folder: Path) -> tuple[list[Span], list[Held]]:
    """What the processes of a run wrote, in the order of time."""
    spans, held = [], []
    for file in folder.glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                continue
            if "bytes" in found:
                held.append(Held(**found))
            else:
                spans.append(Span(**found))
    return sorted(spans, key=lambda s: (s.at, s.depth)), sorted(held, key=lambda h: h.at)


def rows(spans: Sequence[Span], held: Sequence[Held]) -> list[Row]:
    """The stages in the order in which they began, `run` for all else, and their sum."""
    by_stage: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        by_stage[span.stage].append(span)
    found = [_row(stage, mine, held) for stage, mine in by_stage.items()]
    kinds = {kind: sum(row.kinds[kind] for row in found) for kind in (*_KINDS, _OTHER)}
    most = [one.bytes for one in held]
    whole = Row(
        stage="all",
        seconds=max(s.end for s in spans) - min(s.at for s in spans),
        kinds=kinds,
        cpu=sum(row.cpu for row in found),
        most_bytes=max(most, default=None),
    )
    return [*found, whole]


def _row(stage: str, spans: Sequence[Span], held: Sequence[Held]) -> Row:
    kinds = dict.fromkeys((*_KINDS, _OTHER), 0.0)
    for span in spans:
        if span.kind != "wait":
            kinds[span.kind if span.kind in kinds else _OTHER] += span.own
    if stage == RUN:
        # What lies between the other stages: they are not its own.
        inside = [s.seconds for s in spans if s.kind != "stage" and s.depth == 1]
        seconds, times = sum(inside) + sum(s.own for s in spans if s.kind == "stage"), []
    else:
        times = [(s.at, s.end) for s in spans]
        seconds = _union(times)
    during = [h.bytes for h in held if any(start <= h.at <= end for start, end in times)]
    return Row(
        stage=stage,
        seconds=seconds,
        kinds=kinds,
        cpu=sum(s.own_cpu for s in spans if s.kind != "wait"),
        most_bytes=max(during, default=None),
    )


def _union(times: Iterable[tuple[float, float]]) -> float:
    """Seconds that lie within at least one of some times, each from a start to an end."""
    whole, until = 0.0, float("-inf")
    for start, end in sorted(times):
        whole += max(0.0, end - max(start, until))
        until = max(until, end)
    return whole


def table(found: Sequence[Row]) -> Table:
    """The rows for a terminal; kinds of which nothing was done are left out."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("stage")
    kinds = _kinds_of(found)
    for heading in ("s", *kinds, "CPU s", "MB"):
        shown.add_column(heading, justify="right")
    for cells in _cells(found, kinds):
        shown.add_row(*cells)
    return shown


def _kinds_of(found: Sequence[Row]) -> list[str]:
    return [kind for kind in (*_KINDS, _OTHER) if any(row.kinds[kind] >= 0.05 for row in found)]


def _cells(found: Sequence[Row], kinds: Sequence[str]) -> list[list[str]]:
    def shown(seconds: float) -> str:
        return f"{seconds:.1f}" if seconds >= 0.05 else ""

    return [
        [
            row.stage,
            f"{row.seconds:.1f}",
            *(shown(row.kinds[kind]) for kind in kinds),
            shown(row.cpu),
            "" if row.most_bytes is None else f"{row.most_bytes / 1e6:.0f}",
        ]
        for row in found
    ]


def trace(spans: Sequence[Span], held: Sequence[Held]) -> dict[str, Any]:
    """Spans and memory in the Trace Event Format, which Chrome's about:tracing and Perfetto show.

    https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    """
    start = min([*(s.at for s in spans), *(h.at for h in held)], default=0.0)
    events: list[dict[str, Any]] = [
        {
            "ph": "X",
            "name": span.name,
            "cat": span.kind,
            "pid": span.pid,
            "tid": span.thread,
            "ts": round((span.at - start) * 1e6),
            "dur": round(span.seconds * 1e6),
            "args": {"stage": span.stage, "cpu_seconds": round(span.cpu, 3)},
        }
        for span in spans
    ]
    events += [
        {
            "ph": "C",
            "name": "memory",
            "pid": one.pid,
            "ts": round((one.at - start) * 1e6),
            "args": {"MB": round(one.bytes / 1e6)},
        }
        for one in held
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def page(spans: Sequence[Span], held: Sequence[Held]) -> str:
    """A page with the table and a picture of all spans, which needs nothing else."""
    found = rows(spans, held)
    kinds = _kinds_of(found)
    start, end = min(s.at for s in spans), max(s.end for s in spans)
    scale = _WIDTH / max(end - start, 1e-9)
    lanes = [_lane(mine, held, start, scale) for mine in _by_thread(spans)]
    environment = templates("pipeline.commands.run", html=True)
    return environment.get_template("profile.html.j2").render(
        headings=("stage", "s", *kinds, "CPU s", "MB"),
        cells=_cells(found, kinds),
        lanes=lanes,
        kinds=("stage", "wait", *_KINDS),
        width=_WIDTH,
        row=_ROW,
        ticks=[(round(start_of * scale, 1), start_of) for start_of in _ticks(end - start)],
    )


def _by_thread(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans of each thread, in the order in which these began."""
    threads: dict[tuple[int, int], list[Span]] = defaultdict(list)
    for span in spans:
        threads[span.pid, span.thread].append(span)
    return list(threads.values())


def _lane(
    spans: Sequence[Span], held: Sequence[Held], start: float, scale: float
) -> dict[str, Any]:
    """What the page draws of a thread: boxes, and a line of the memory of its process."""
    begun, ended = spans[0].at, max(span.end for span in spans)
    mine = [h for h in held if h.pid == spans[0].pid and begun <= h.at <= ended]
    most = max((h.bytes for h in mine), default=0)
    points = " ".join(
        f"{(h.at - start) * scale:.1f},{_ROW * (1 - h.bytes / max(most, 1)):.1f}" for h in mine
    )
    boxes = [
        {
            "x": round((span.at - start) * scale, 2),
            "width": round(span.seconds * scale, 2),
            "depth": span.depth + 1,
            "kind": span.kind,
            "text": span.name,
            "title": f"{span.name} ({span.kind}, {span.stage}): {span.seconds:.2f} s, "
            f"{span.cpu:.2f} s of CPU",
        }
        for span in spans
        if span.seconds * scale >= _NARROWEST
    ]
    rows_deep = 2 + max((span.depth for span in spans), default=0)
    return {"boxes": boxes, "points": points, "most": most / 1e6, "rows": rows_deep}


def _ticks(seconds: float) -> Iterator[float]:
    """Some ten round numbers of seconds."""
    step = next(s for s in (0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 3600, 36000) if seconds / s < 15)
    for index in range(int(seconds / step) + 1):
        yield index * step


def _write(spans: Sequence[Span], held: Sequence[Held], out: Path) -> None:
    (out / TRACE).write_text(json.dumps(trace(spans, held)), encoding="utf-8")
    (out / PAGE).write_text(page(spans, held), encoding="utf-8")
