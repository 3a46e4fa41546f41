"""What `run --profile` makes of what the processes of a run recorded."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from pipeline.base.errors import InputError
from pipeline.base.profile import PAGE, TRACE, Kind, span
from pipeline.commands.run.profile import Held, Span, page, profiled, rows, trace


def one(kind: str, name: str, stage: str, at: float, seconds: float, **others: float) -> Span:
    """A span of process 1, in which no other lies but where `own` says so."""
    given = {"pid": 1, "thread": 1, "depth": 1, "own": seconds, "cpu": 0.0, "own_cpu": 0.0} | others
    return Span(kind=kind, name=name, stage=stage, at=at, seconds=seconds, **given)  # type: ignore[arg-type]


SPANS = [
    one("stage", "run", "run", 0, 20, depth=0, own=1),
    one("import", "torch", "run", 0, 3),
    one("stage", "export", "export", 4, 10, own=2),
    one("wait", "a child process", "export", 6, 8, depth=2),
    one("import", "Python", "export", 6, 1, pid=2, depth=0),
    one("convert", "the file", "export", 7, 7, pid=2, depth=0, own=5, own_cpu=4),
    one("trace", "the program", "export", 8, 2, pid=2),
    one("stage", "export", "export", 5, 12, thread=7, depth=0),
]
HELD = [Held(pid=1, at=1, bytes=10**6), Held(pid=2, at=9, bytes=3 * 10**6)]


def test_a_row_says_what_a_stage_took_and_what_for() -> None:
    run, export, whole = rows(SPANS, HELD)
    assert (run.stage, run.seconds, run.kinds["import"], run.kinds["other"]) == ("run", 4, 3, 1)
    assert export.seconds == 13  # two at the same time, from 4 to 17
    assert {kind: s for kind, s in export.kinds.items() if s} == {
        "import": 1,
        "convert": 5,
        "trace": 2,
        "other": 14,
    }
    assert (export.cpu, export.most_bytes, whole.seconds) == (4, 3 * 10**6, 20)


def test_the_trace_is_of_the_trace_event_format() -> None:
    found = trace(SPANS, HELD)["traceEvents"]
    assert [event["ph"] for event in found] == ["X"] * 8 + ["C"] * 2
    wait = found[3]
    assert (wait["ts"], wait["dur"], wait["cat"], wait["pid"]) == (6e6, 8e6, "wait", 1)
    assert found[-1] == {"ph": "C", "name": "memory", "pid": 2, "ts": 9e6, "args": {"MB": 3}}


def test_the_page_shows_every_span_and_escapes_names() -> None:
    spans = [*SPANS, one("train", "<script>", "run", 1, 1, pid=3)]
    text = page(spans, HELD)
    assert text.count("<rect") == len(spans) + len(get_args(Kind))  # and the legend
    assert "<script> (train" not in text
    assert "&lt;script&gt; (train, run): 1.00 s" in text


def test_a_run_that_fails_leaves_its_profile(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    with (
        pytest.raises(InputError, match="no such"),
        profiled(tmp_path, console, wanted=True),
        span("stage", "train"),
        span("train", "epochs"),
    ):
        raise InputError("no such checkpoint")
    names = {event["name"] for event in json.loads((tmp_path / TRACE).read_text())["traceEvents"]}
    assert {"run", "train", "epochs"} <= names
    assert "<td>train</td>" in (tmp_path / PAGE).read_text()


def test_a_profile_is_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / PAGE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"), profiled(tmp_path, Console(), wanted=True):
        pytest.fail("began")


def test_nothing_is_written_where_nobody_asked(tmp_path: Path) -> None:
    with profiled(tmp_path, Console(), wanted=False):
        pass
    assert not list(tmp_path.iterdir())
