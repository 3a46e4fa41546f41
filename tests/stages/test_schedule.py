"""Stages of several recipes: in order, side by side where children do the work, and made once."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.base.children import Children
from pipeline.base.errors import InputError
from pipeline.base.store import Store
from pipeline.recipe.recipe import load_recipes
from pipeline.recipe.resnest import ResNeStModel
from pipeline.stages import schedule
from pipeline.stages.context import Context, Inputs
from pipeline.stages.graph import STAGES
from pipeline.stages.schedule import PACKAGE, RecipeRun, run_together
from pipeline.stages.stage import Stage, StageFacts
from tests.making import HOUR, networks
from tests.making.processes import SLEEP, is_alive, python, when, written
from tests.making.recipes import DEVICE_RECIPES


class Said(StageFacts):
    of: str = ""


Make = Callable[[Context, Inputs, Path], Said]

MEET = """
import pathlib, sys, time
mine, others = pathlib.Path(sys.argv[1]), [pathlib.Path(name) for name in sys.argv[2:]]
mine.touch()
deadline = time.monotonic() + 600
while not all(other.exists() for other in others):
    if time.monotonic() > deadline:
        sys.exit(1)
    time.sleep(0.01)
"""
"""Ends well only where all run at the same time."""


NO_SHAPE_DEPENDS_ON_THEM = {"checkpoint", "head", "input_size", "weights"}
"""Keys of `model`; the side of the images is in every stage's key."""
NO_RESULT_DEPENDS_ON_THEM = {
    "__init__.py",
    "__main__.py",
    # How results are kept, and what goes wrong
    *("base/__init__.py", "base/checksums.py", "base/children.py", "base/console.py"),
    *("base/disk.py", "base/errors.py", "base/locks.py", "base/memory.py", "base/passing.py"),
    *(
        "base/profile.py",
        "base/safe_files.py",
        "base/signals.py",
        "base/store.py",
        "base/templates.py",
    ),
    # Facts of the machine: those that count are in the keys
    "base/machine.py",
    # What is done with results
    *("base/record.py", "measure/__init__.py", "measure/parity_record.py", "measure/ratios.py"),
    *("measure/patches.py", "measure/roofline.py"),
    # Which lanes there are
    *("measure/lanes/__init__.py", "measure/lanes/lanes.py"),
    "compress/__init__.py",
    # The loop over the stages
    *(
        "stages/__init__.py",
        "stages/assemble.py",
        "stages/drawn.py",
        "stages/carried.py",
        "stages/combined.py",
    ),
    "stages/devices.py",
    *("stages/explain.py", "stages/finished_run.py", "stages/floats.py"),
    *("stages/known.py", "stages/latest.py", "stages/names.py", "stages/presets.py"),
    *("stages/graph.py", "stages/guard.py", "stages/publish.py", "stages/run.py"),
    *("stages/schedule.py", "stages/stage.py"),
}
FOLDERS_APART = (
    *("commands/", "measure/baseline/", "measure/device/", "measure/lanes/adb/"),
    *("measure/lanes/apple/", "recipe/", "report/"),
)
"""Commands, what other machines measured, recipes (what they say is in the keys), reports."""


def test_times_are_taken_anew_for_a_network_of_another_shape() -> None:
    (times,) = (stage for stage in STAGES if stage.name == "times")
    shape = ResNeStModel.model_fields.keys() - NO_SHAPE_DEPENDS_ON_THEM
    (recipe,) = load_recipes([DEVICE_RECIPES["onnx"]])
    read = {*times.reads, *times.also_reads(recipe)}
    assert {f"model.{key}" for key in shape} == {key for key in read if key.startswith("model")}


def test_a_run_loads_only_what_its_stages_need() -> None:
    # They take seconds, also where every stage is reused.
    heavy = "{'torchao', 'torch_pruning', 'torchvision', 'timm', 'sklearn', 'matplotlib'}"
    script = "import sys, pipeline.stages.run; from pipeline.tasks.images import digits; "
    script += f"digits.grey_digits(); print({heavy} & sys.modules.keys())"
    assert subprocess.check_output(python(script), cwd=PACKAGE.parent, text=True) == "set()\n"


def test_every_module_is_in_the_keys_or_decides_no_result() -> None:
    listed = {name for one in STAGES for name in one.code}
    known = (*FOLDERS_APART, *(f"{name}/" for name in listed))
    modules = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    apart = {name for name in modules - listed if not name.startswith(known)}
    assert apart == NO_RESULT_DEPENDS_ON_THEM
    assert all((PACKAGE / name).exists() for name in listed)


def stage(make: Make, **changes: Any) -> Stage[Said]:
    parts = {"name": "export", "after": (), "reads": ("target.format", "name"), "code": ()}
    return Stage(make=make, facts=Said, packages=(), in_child=True, **(parts | changes))


def three_runs() -> list[RecipeRun]:
    children, dataset = Children(), networks.dataset()
    return [
        RecipeRun(
            context=Context(
                recipe=recipe,
                dataset=dataset,
                tracked=lambda title, total: nullcontext(lambda done, text: None),
                children=children,
            ),
            gate=lambda result: None,
        )
        for recipe in load_recipes(list(DEVICE_RECIPES.values()))
    ]


def stored(directory: Path, known: set[str] | None = None) -> Store:
    """A store; with `known`, one that makes everything anew."""
    fresh = known is not None
    return Store(directory=directory, tell=lambda line: None, fresh=fresh, known=known or set())


def results(store: Path) -> list[str]:
    return [place.name for place in store.glob("*") if not place.name.startswith(".")]


def together(
    wanted: Stage[Said], runs: Sequence[RecipeRun], store: Path, known: set[str] | None = None
) -> list[str]:
    """Run them and return the lines that are shown."""
    shown = io.StringIO()
    run_together(wanted, runs, stored(store, known), Console(file=shown, width=200))
    return shown.getvalue().splitlines()


def limit(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(schedule, "at_once", lambda wanted: min(wanted, count))


def name_of(context: Context) -> str:
    return context.recipe.name


def test_no_stage_stands_beside_one_that_works_in_a_child() -> None:
    parts = schedule.passes(STAGES)
    assert [stage for part in parts for stage in part] == list(STAGES)
    assert [[stage.name for stage in part if stage.in_child] for part in parts] == [
        [],
        ["export"],
        [],
    ]
    assert [len(part) for part in parts if part[0].in_child] == [1]
    assert not any(stage.in_child for stage in STAGES if stage.on_host), "they time"
    one, two = stage(lambda *_: Said()), stage(lambda *_: Said(), name="two")
    assert schedule.passes([one, two]) == [(one,), (two,)]


def test_children_work_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3)
    runs, store = three_runs(), tmp_path / "store"
    marks = [tmp_path / name_of(run.context) for run in runs]

    def make(context: Context, inputs: Inputs, out: Path) -> Said:
        command = python(MEET, tmp_path / name_of(context), *marks)
        assert context.children.run(command, os.environ) == 0
        return Said(of=name_of(context))

    lines = together(stage(make), runs, store)
    for run in runs:
        result = run.results["export"]
        assert result.facts == Said(of=name_of(run.context))
        assert not result.reused
    assert lines[0] == "export  3 at a time"
    assert sorted(line.split()[0] for line in lines[1:]) == sorted(mark.name for mark in marks)
    assert all(line.endswith(" s") for line in lines[1:])
    assert len(results(store)) == 3


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_than_there_is_room_for(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, most)
    spans: list[tuple[float, float]] = []

    def make(context: Context, inputs: Inputs, out: Path) -> Said:
        started = time.monotonic()
        time.sleep(0.2)
        spans.append((started, time.monotonic()))
        return Said()

    together(stage(make), three_runs(), tmp_path)
    running = [sum(start <= begin < end for start, end in spans) for begin, _ in spans]
    assert max(running) == most


@pytest.mark.parametrize("fresh", [False, True])
def test_equal_results_are_made_once(
    fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 3)
    calls: list[str] = []

    def make(context: Context, inputs: Inputs, out: Path) -> Said:
        calls.append(name_of(context))
        time.sleep(0.1)
        return Said()

    wanted = stage(make, reads=("target.precision",))
    if fresh:
        together(wanted, three_runs(), tmp_path)
    runs = three_runs()
    lines = together(wanted, runs, tmp_path, set() if fresh else None)
    assert calls == [name_of(runs[0].context)] * (2 if fresh else 1)
    assert [run.results["export"].reused for run in runs] == [False, True, True]
    assert len({run.results["export"].directory for run in runs}) == 1
    assert lines[0] == "export  1 at a time"
    assert [line.split()[-1] for line in lines[2:]] == ["reused", "reused"]


def test_what_is_there_is_reused_and_what_is_not_needed_is_left_out(tmp_path: Path) -> None:
    runs = three_runs()
    first = name_of(runs[0].context)
    wanted = stage(lambda *_: Said(), needed=lambda recipe: recipe.name == first)
    together(wanted, runs, tmp_path)
    assert [list(run.results) for run in runs] == [["export"], [], []]

    def refuse(context: Context, inputs: Inputs, out: Path) -> Said:
        assert name_of(context) != first
        return Said()

    again = three_runs()
    together(stage(refuse), again, tmp_path)
    assert [run.results["export"].reused for run in again] == [True, False, False]


def test_a_single_recipe_is_shown_as_any_other_stage(tmp_path: Path) -> None:
    (line,) = together(stage(lambda *_: Said()), three_runs()[:1], tmp_path)
    assert line == "  export    0.0 s"


def test_the_error_is_that_of_the_one_that_failed_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, 2)
    runs, store = three_runs(), tmp_path / "store"
    bad, slow, late = (name_of(run.context) for run in runs)
    started: list[str] = []

    def make(context: Context, inputs: Inputs, out: Path) -> Said:
        started.append(name_of(context))
        if name_of(context) == bad:
            while slow not in started:
                time.sleep(0.01)
            raise InputError("the cause")
        time.sleep(0.5)
        return Said()

    with pytest.raises(InputError, match="the cause"):
        together(stage(make), runs, store)
    assert late not in started
    assert [run.context.recipe.name for run in runs if run.results] == [slow]
    assert len(results(store)) == 1, "the one beside it is whole, nothing else is left"
    assert together(stage(make), [runs[1]], store) == ["  export    reused"]


def test_a_gate_is_asked(tmp_path: Path) -> None:
    run = three_runs()[0]

    def refuse(result: object) -> None:
        raise InputError("refused")

    with pytest.raises(InputError, match="refused"):
        together(stage(lambda *_: Said()), [RecipeRun(context=run.context, gate=refuse)], tmp_path)


def test_an_interrupted_run_ends_its_children_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    limit(monkeypatch, 2)
    runs, store = three_runs(), tmp_path / "store"
    marks = [tmp_path / name_of(run.context) for run in runs]

    def make(context: Context, inputs: Inputs, out: Path) -> Said:
        status = context.children.run(python(SLEEP, tmp_path / name_of(context)), os.environ)
        raise RuntimeError(f"writing failed (exit {status})")

    started = time.monotonic()
    thread = when(written(*marks[:2]), lambda: os.kill(os.getpid(), signal.SIGINT))
    shown = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_together(stage(make), runs, stored(store), Console(file=shown, width=200))
    thread.join()
    assert "failed" not in shown.getvalue()
    assert time.monotonic() - started < HOUR, "none was waited for"
    assert not any(is_alive(int(mark.read_text())) for mark in marks[:2])
    assert not marks[2].exists()
    assert not results(store)
