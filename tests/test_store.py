"""Stage results: keys, atomic publishing, reuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.store import disk_full, key_of, obtain, sweep

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def write_hello(scratch: Path) -> dict[str, int]:
    (scratch / "hello.txt").write_text("hello")
    return {"params": 3}


def refuse(scratch: Path) -> dict[str, int]:
    raise AssertionError("must not run")


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=4))
def test_equal_ingredients_give_equal_keys(ingredients: dict) -> None:
    assert key_of(ingredients) == key_of(dict(reversed(ingredients.items())))


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=4), PLAIN)
def test_one_more_ingredient_gives_another_key(ingredients: dict, value: object) -> None:
    assert key_of(ingredients) != key_of(ingredients | {"another name": value})


def test_a_result_is_made_once(tmp_path: Path) -> None:
    first = obtain(tmp_path, "train", {"a": 1}, write_hello)
    again = obtain(tmp_path, "train", {"a": 1}, refuse)
    assert (first.reused, again.reused) == (False, True)
    assert again.facts == {"params": 3}
    assert again.seconds == first.seconds
    assert (again.directory / "hello.txt").read_text() == "hello"


def test_fresh_results_are_made_once_per_call(tmp_path: Path) -> None:
    obtain(tmp_path, "train", {"a": 1}, write_hello)
    made: set[str] = set()
    assert not obtain(tmp_path, "train", {"a": 1}, write_hello, made=made).reused
    assert obtain(tmp_path, "train", {"a": 1}, refuse, made=made).reused


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail(scratch: Path) -> dict[str, int]:
        (scratch / "half.txt").write_text("half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        obtain(tmp_path, "train", {}, fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_leftovers_of_killed_processes_are_swept_and_no_others(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    dead, alive = tmp_path / f".train-{gone.pid}-abc", tmp_path / f".train-{os.getpid()}-abc"
    result = tmp_path / "train-0123456789"
    for directory in (dead, alive, result):
        directory.mkdir()
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {alive.name, result.name}


def test_a_failed_remake_keeps_the_old_result(tmp_path: Path) -> None:
    old = obtain(tmp_path, "train", {}, write_hello)

    def fail(scratch: Path) -> dict[str, int]:
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        obtain(tmp_path, "train", {}, fail, made=set())
    assert (old.directory / "hello.txt").read_text() == "hello"


def test_a_result_without_its_record_is_made_again(tmp_path: Path) -> None:
    first = obtain(tmp_path, "train", {}, write_hello)
    (first.directory / "stage.json").write_text("{")
    assert not obtain(tmp_path, "train", {}, write_hello).reused


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path) -> None:
    def fail(scratch: Path) -> dict[str, int]:
        raise RuntimeError("writer failed") from OSError(28, "No space left on device")

    with pytest.raises(InputError, match="disk space"):
        obtain(tmp_path, "train", {}, fail)


def test_other_errors_are_not_called_a_full_disk(tmp_path: Path) -> None:
    assert not disk_full(ValueError("no"), tmp_path)
