"""Stage results: keys, atomic publishing, reuse."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import checksums, safe_files
from pipeline.base.checksums import damage, seal
from pipeline.base.errors import InputError
from pipeline.base.safe_files import open_file
from pipeline.base.store import (
    IMAGES,
    LOCKS,
    PARTIAL,
    Facts,
    Place,
    Result,
    Store,
    key_of,
    refuse_links,
)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


class Said(Facts):
    params: int = 0
    layers: tuple[str, ...] = ()


HELLO = Said(params=3, layers=("conv", "fc"))


def write_hello(place: Place) -> Said:
    (place.result / "hello.txt").write_text("hello")
    return HELLO


def refuse(place: Place) -> Said:
    raise AssertionError("must not run")


def fail(place: Place) -> Said:
    (place.result / "half.txt").write_text("half")
    raise ValueError("stop")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[str]) -> Store:
    return Store(directory=tmp_path, tell=told.append)


def again(store: Store, **changes: Any) -> Store:
    """The same directory in another call of the program."""
    return replace(store, known=set(), **changes)


def hello(store: Store, make: Callable[[Place], Said] = write_hello) -> Result[Said]:
    return store.obtain("train", {"a": 1}, make, Said)


def results(store: Store) -> list[Path]:
    return [p for p in store.directory.iterdir() if p.name not in {LOCKS, PARTIAL}]


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=4))
def test_equal_ingredients_give_equal_keys(ingredients: dict) -> None:
    assert key_of(ingredients) == key_of(dict(reversed(ingredients.items())))


@given(st.dictionaries(st.text(max_size=3), PLAIN, max_size=4), PLAIN)
def test_one_more_ingredient_gives_another_key(ingredients: dict, value: object) -> None:
    assert key_of(ingredients) != key_of(ingredients | {"another name": value})


def test_a_result_is_made_once(store: Store) -> None:
    first = hello(store)
    for later in (hello(store, refuse), hello(again(store), refuse)):
        assert (first.reused, later.reused) == (False, True)
        assert later.facts == HELLO
        assert later.seconds == first.seconds
        assert (later.directory / "hello.txt").read_text() == "hello"
    assert damage(first.directory) is None


def test_fresh_results_are_made_once_per_call(store: Store) -> None:
    hello(store)
    fresh = again(store, fresh=True)
    assert not hello(fresh).reused
    assert hello(fresh, refuse).reused


def test_a_failed_stage_leaves_nothing(store: Store) -> None:
    with pytest.raises(ValueError, match="stop"):
        hello(store, fail)
    assert not results(store)
    assert not list((store.directory / LOCKS).glob("*.json"))


def test_what_a_killed_process_left_is_removed_by_the_next(store: Store) -> None:
    first = hello(store)
    left = store.directory / f".making-{first.directory.name}-abc"
    other = store.directory / ".making-prune-0123-abc"
    for directory in (left, other):
        directory.mkdir()
    hello(again(store, fresh=True))
    assert not left.exists()
    assert other.exists(), "another process may be writing it"


def test_a_failed_remake_keeps_the_old_result(store: Store) -> None:
    old = hello(store)
    with pytest.raises(ValueError, match="stop"):
        hello(again(store, fresh=True), fail)
    assert (old.directory / "hello.txt").read_text() == "hello"
    assert hello(again(store), refuse).reused


@pytest.mark.parametrize("name", ["hello.txt", "stage.json", "SHA256SUMS"])
def test_a_damaged_result_is_set_aside_and_made_again(
    store: Store, told: list[str], name: str
) -> None:
    first = hello(store)
    with (first.directory / name).open("r+b") as file:
        file.truncate(3)
    assert not hello(again(store)).reused
    (line,) = told
    assert str(first.directory) in line
    (aside,) = store.directory.glob(".damaged-*")
    assert aside.name in line
    assert (aside / first.directory.name / name).stat().st_size == 3
    assert hello(again(store), refuse).reused


def test_what_a_stage_keeps_is_there_again_until_it_is_done(store: Store) -> None:
    def stopped(place: Place) -> Said:
        place.partial.mkdir(parents=True)
        (place.partial / "step").write_text("7")
        raise KeyboardInterrupt

    def go_on(place: Place) -> Said:
        assert (place.partial / "step").read_text() == "7"
        return Said()

    with pytest.raises(KeyboardInterrupt):
        hello(store, stopped)
    result = hello(again(store), go_on)
    assert not (store.directory / PARTIAL / result.directory.name).exists()


def test_who_waits_takes_the_others_result(store: Store, told: list[str]) -> None:
    lock = store.directory / LOCKS / f"train-{key_of({'a': 1})}.json"
    other = again(store, tell=lambda line: None)

    def work() -> None:
        made.append(hello(other, slowly))

    def slowly(place: Place) -> Said:
        begun.set()
        go.wait(10)
        return write_hello(place)

    made: list[Result[Said]] = []
    begun, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    assert lock.is_file()
    threading.Timer(0.3, go.set).start()
    assert hello(store, refuse).reused
    thread.join()
    assert not made[0].reused
    assert told == [f"  train: waiting for process {os.getpid()} on {socket.gethostname()}"]


@pytest.mark.parametrize(
    ("around", "folder", "file"), [(0o755, 0o755, 0o644), (0o700, 0o700, 0o600)]
)
def test_a_result_can_be_read_by_whoever_can_read_the_store(
    store: Store, around: int, folder: int, file: int
) -> None:
    store.directory.chmod(around)

    def make(place: Place) -> Said:
        write_hello(place)
        for path in place.result.iterdir():
            path.chmod(0o600)  # as safetensors does
        return write_hello(place)

    made = hello(store, make).directory
    assert stat.S_IMODE(made.stat().st_mode) == folder
    (said,) = (path for path in made.iterdir() if path.suffix == ".txt")
    assert stat.S_IMODE(said.stat().st_mode) == file


def test_a_full_disk_is_the_users_to_mend(store: Store) -> None:
    def full(place: Place) -> Said:
        raise RuntimeError("writer failed") from OSError(28, "No space left on device")

    with pytest.raises(InputError, match="disk space"):
        hello(store, full)


def test_links_lead_nothing_out_of_a_store(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    store.directory.joinpath(PARTIAL).mkdir()
    name = f"train-{key_of({'a': 1})}"
    (store.directory / name).symlink_to(tmp_path / "nowhere")
    (store.directory / PARTIAL / name).symlink_to(outside)

    def save(place: Place) -> Said:
        place.partial.mkdir(parents=True)
        (place.partial / "state").touch()
        return Said()

    hello(store, save)
    assert not (store.directory / name).is_symlink()
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("shared", [LOCKS, PARTIAL, IMAGES])
def test_shared_folders_of_a_store_are_no_links(tmp_path: Path, shared: str) -> None:
    refuse_links(tmp_path)
    (tmp_path / shared).symlink_to(tmp_path)
    with pytest.raises(InputError, match=f"{shared}: is a link"):
        refuse_links(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", "\xff"])
def test_a_record_that_is_none_is_set_aside(store: Store, told: list[str], content: str) -> None:
    first = hello(store)
    (first.directory / "stage.json").write_text(content, encoding="latin1")
    seal(first.directory)
    assert not hello(again(store)).reused
    assert "stage.json cannot be read" in told[-1]
    assert again(store).ingredients("train")


@pytest.mark.parametrize("name", ["hello.txt", "stage.json"])
def test_a_result_that_cannot_be_read_now_stays(
    store: Store, told: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hello(store)

    def fails(path: Path) -> BinaryIO:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return open_file(path)

    for module in (checksums, safe_files):
        monkeypatch.setattr(module, "open_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        hello(again(store), refuse)
    monkeypatch.undo()
    assert results(store) == [first.directory]
    assert hello(again(store), refuse).reused
    assert told == []


@pytest.mark.parametrize(
    "facts",
    [{"params": "3"}, {"params": 3, "macs": 4}, {"params": 3, "layers": [1]}, [], None, 3],
)
def test_facts_of_another_version_are_made_again(
    store: Store, told: list[str], facts: object
) -> None:
    """An older result whose facts do not fit the type of today is no crash."""
    first = hello(store)
    record = first.directory / "stage.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"facts": facts}))
    seal(first.directory)
    found = hello(again(store))
    assert not found.reused
    assert found.facts == HELLO
    assert f"{first.directory}: its facts are not those of this version (" in told[-1]
    assert hello(again(store), refuse).reused
