"""The quick share of the fuzzing, and proof that what it looks for is seen.

The whole share: `python -m tests.soak.fuzz_recipes --count 20000` and
`python -m tests.soak.fuzz_files --count 5000`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError, printable
from pipeline.recipe.recipe import load_recipes
from tests.making import HOUR
from tests.soak import fuzz_files, fuzz_recipes, sandbox
from tests.soak.sandbox import Case, Outcome, Place

pytestmark = pytest.mark.slow

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
WHOLE: dict[str, Any] = yaml.safe_load(fuzz_recipes.whole())
KEYS = sorted(WHOLE)


def test_a_share_of_fuzzed_recipes(tmp_path: Path) -> None:
    found = fuzz_recipes.run(100, seed=1, workers=2, work=tmp_path, quick=True)
    assert not found.faults, found.text()
    assert sum(found.table.values()) == 100


def test_a_share_of_fuzzed_files(tmp_path: Path) -> None:
    found = fuzz_files.run(24, seed=1, workers=1, work=tmp_path, quick=True)
    assert not found.faults, found.text()
    assert sum(found.table.values()) == 24
    assert {outcome for _, outcome in found.table} == {"ok", "refused"}, "both are reached"
    before = sorted(tmp_path.glob("progress-*"))
    again = fuzz_files.run(24, seed=1, workers=1, work=tmp_path, quick=True)
    assert again == found, "what was done is not done again"
    assert sorted(tmp_path.glob("progress-*")) == before


def complaints(path: Path) -> str:
    """What is said of a recipe; empty where it is fine."""
    said = ""
    try:
        load_recipes([path])
    except InputError as error:
        said = str(error)
    assert all(line.startswith(str(path)) for line in said.split("\n") if said), said
    return said


GENTLE = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@GENTLE
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.binary())
def test_any_text_is_a_recipe_or_complained_about(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert complaints(path)


@GENTLE
@given(changes=st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), TREES, max_size=3))
def test_any_value_is_taken_or_complained_about(changes: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(WHOLE | changes), encoding="utf-8")
    said = complaints(path)
    assert all(line.isprintable() for line in printable(said).split("\n"))


# What is looked for is seen.


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "case")
    place.make()
    return place


def outcome(
    place: Place, program: Callable[[Sequence[str]], int], *, must_refuse: bool = False
) -> Outcome:
    case = Case(argv=["x"], names=["recipe.yaml"], must_refuse=must_refuse)
    return sandbox.run(case, place, program=program, seconds=2.0, memory_bytes=300 * 2**20)


def refuse(text: str) -> Callable[[Sequence[str]], int]:
    def program(argv: Sequence[str]) -> int:
        print(text, file=sys.stderr)
        return 2

    return program


def test_what_is_no_fault(place: Place) -> None:
    def well_behaved(argv: Sequence[str]) -> int:
        (place.out / "report.json").write_text("{}")
        (Path(os.environ["TMPDIR"]) / "x").touch()
        Path(os.devnull).write_text("x")
        return 0

    assert outcome(place, well_behaved).kind == "ok"
    assert outcome(place, well_behaved, must_refuse=True).kind == "accepted"
    assert outcome(place, refuse("error: a/recipe.yaml:3: is wrong")).kind == "refused"


@pytest.mark.parametrize(
    "text", ["a/recipe.yaml is wrong", "error: is wrong", "error: recipe.yaml \x1b[31m"]
)
def test_a_bad_message_is_seen(place: Place, text: str) -> None:
    assert outcome(place, refuse(text)).kind == "bad message"


def test_a_traceback_is_seen(place: Place) -> None:
    def fail(argv: Sequence[str]) -> int:
        raise KeyError("x")

    assert outcome(place, fail).kind == "traceback"


def test_a_crash_is_seen(place: Place) -> None:
    def crash(argv: Sequence[str]) -> int:
        os.kill(os.getpid(), signal.SIGSEGV)
        return 0

    found = outcome(place, crash)
    assert (found.kind, found.code) == ("crash", -signal.SIGSEGV)


def test_a_hang_is_seen_and_ended(place: Place) -> None:
    def hang(argv: Sequence[str]) -> int:
        time.sleep(2 * HOUR)
        return 0

    found = outcome(place, hang)
    assert found.kind == "hang"
    assert found.seconds < HOUR


def test_too_much_memory_is_seen(place: Place) -> None:
    def fill(argv: Sequence[str]) -> int:
        held = bytearray(b"x") * (400 * 2**20)
        return len(held) * 0

    assert outcome(place, fill).kind == "memory"


def overwrite(place: Place) -> None:
    (place.canary / "file").write_text("changed")


def follow_a_link(place: Place) -> None:
    (place.out / "link").symlink_to(place.canary)
    (place.out / "link" / "new").touch()


def climb(place: Place) -> None:
    (place.out / ".." / "canary" / "new").mkdir()


def remove(place: Place) -> None:
    (place.canary / "file").unlink()


def remove_by_folder(place: Place) -> None:
    folder = os.open(place.canary, os.O_RDONLY)
    os.unlink("file", dir_fd=folder)


def move_out(place: Place) -> None:
    (place.out / "mine").touch()
    (place.out / "mine").rename(place.given / "mine")


def natively(place: Place) -> None:
    ctypes.CDLL(None).mkdir(os.fsencode(place.canary / "new"), 0o755)


def far_away(place: Place) -> None:
    (place.root.parent / "elsewhere").touch()


def another_program(place: Place) -> None:
    os.system("true")


@pytest.mark.parametrize(
    "does",
    [
        *(overwrite, follow_a_link, climb, remove, remove_by_folder, move_out, natively),
        *(far_away, another_program),
    ],
)
def test_a_write_outside_is_seen(place: Place, does: Callable[[Place], None]) -> None:
    def program(argv: Sequence[str]) -> int:
        does(place)
        return 0

    assert outcome(place, program).kind == "wrote outside"


def test_a_pickle_that_runs_where_the_guard_is_bypassed_is_seen(place: Place) -> None:
    from tests.soak.checkpoints import _Hostile, packed

    path = place.given / "evil.pt"
    path.write_bytes(packed({"x": _Hostile(place.canary, 1)}, "zip"))

    def unguarded(argv: Sequence[str]) -> int:
        import torch

        torch.load(path, weights_only=False)
        return 0

    found = outcome(place, unguarded)
    assert found.kind == "wrote outside"
    assert "mkdir" in found.detail
    assert (place.canary / "ran").exists()

    def harmless(argv: Sequence[str]) -> int:
        pickle.loads(pickle.dumps(Path))
        return 0

    assert "pickle.find_class" in outcome(place, harmless).detail, "whatever it would have done"
