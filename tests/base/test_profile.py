"""What processes record of themselves, and that nothing is recorded where nobody asked."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.base import profile
from pipeline.base.children import Children
from pipeline.base.profile import span
from tests.making import ROOT
from tests.making.processes import python


def written(folder: Path, key: str = "kind") -> list[dict[str, Any]]:
    """The spans (or what has another key) of all processes, in the order of their beginning."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted((r for r in map(json.loads, lines) if key in r), key=lambda r: r["at"])


def test_a_span_is_also_a_decorator_and_costs_nothing_where_nobody_asked() -> None:
    @span("train", "a function")
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8
    assert profile.for_children() == {}


def test_the_seconds_of_a_span_are_its_own_or_of_one_inside(tmp_path: Path) -> None:
    imports = builtins.__import__
    with profile.recording(tmp_path), span("stage", "fold"), span("trace", "outer"):
        for name in ("first", "second"):
            with span("hash", name):
                sum(range(10000))
    assert builtins.__import__ is imports
    with span("hash", "nobody asks any more"):
        pass
    fold, outer, *inner = written(tmp_path)
    assert [one["name"] for one in (fold, outer, *inner)] == ["fold", "outer", "first", "second"]
    assert {one["stage"] for one in (fold, outer, *inner)} == {"fold"}
    assert [fold["depth"], outer["depth"], inner[0]["depth"]] == [0, 1, 2]
    inside = sum(one["seconds"] for one in inner)
    assert abs(outer["own"] + inside - outer["seconds"]) < 1e-9
    assert abs(fold["own"] + outer["seconds"] - fold["seconds"]) < 1e-9
    assert all(one["own"] == one["seconds"] for one in inner)


def test_memory_is_watched(tmp_path: Path) -> None:
    with profile.recording(tmp_path):
        while not (held := written(tmp_path, "bytes")):
            pass
    if sys.platform == "linux":
        assert 10e6 < held[0]["bytes"] < 100e9


def test_what_is_loaded_is_a_span_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "slowly_loaded.py").write_text("import time, decimal\ntime.sleep(.01)\n")
    (tmp_path / "out").mkdir()
    code = "import sys; from pathlib import Path; from pipeline.base import profile; "
    code += "sys.path.append(sys.argv[1])\nwith profile.recording(Path(sys.argv[1], 'out')):\n"
    code += "    import slowly_loaded, os\n    import slowly_loaded"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert Children().run(python(code, tmp_path), environment) == 0
    assert [one["name"] for one in written(tmp_path / "out")] == ["slowly_loaded"]


def test_a_child_says_what_it_did_and_for_which_stage(tmp_path: Path) -> None:
    code = "from pipeline.base import profile; profile.start_in_child()\n"
    code += "with profile.span('convert', 'a file'): pass"
    with profile.recording(tmp_path), span("stage", "export"):
        assert Children().run(python(code), os.environ | {"PYTHONPATH": str(ROOT)}) == 0
    export, wait, began, convert = written(tmp_path)
    assert (wait["kind"], began["name"], convert["name"]) == ("wait", "Python", "a file")
    assert export["pid"] == wait["pid"] != began["pid"] == convert["pid"]
    assert {one["stage"] for one in (began, convert)} == {"export"}
    assert (
        wait["at"]
        <= began["at"]
        < convert["at"] + convert["seconds"]
        <= wait["at"] + wait["seconds"]
    )
