"""What `gc` may remove, and what it must never touch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.finished import STAGES_FILE
from pipeline.store import LOCKS, PARTIAL
from pipeline.upkeep import removable, remove_all


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of one run, whose store holds one more result, and a file outside."""
    out = tmp_path / "out"
    for name in ("train-used", "train-not", LOCKS, f"{PARTIAL}/qat-1"):
        (out / ".store" / name).mkdir(parents=True)
        (out / ".store" / name / "file").write_text("x")
    (out / "run").mkdir()
    (out / "run" / STAGES_FILE).write_text(json.dumps({"train": "../.store/train-used"}))
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    (tmp_path / "outside" / "folder" / "file").touch()
    return out


def names(out: Path) -> list[str]:
    return [one.path.name for one in removable(out, out / ".store")]


def test_what_no_run_needs_is_removed(out: Path) -> None:
    assert names(out) == ["train-not", "qat-1"]
    remove_all(removable(out, out / ".store"))
    assert names(out) == []
    assert (out / ".store" / "train-used" / "file").exists()


def test_nothing_is_removed_through_a_link(out: Path) -> None:
    outside, store = out.parent / "outside", out / ".store"
    (store / "train-link").symlink_to(outside)
    (store / ".making-link").symlink_to(outside)
    remove_all(removable(out, store))
    assert not (store / "train-link").is_symlink(), "the link itself goes"
    assert (outside / "folder" / "file").exists()
    shutil.rmtree(store / PARTIAL)
    (store / PARTIAL).symlink_to(outside)
    with pytest.raises(InputError, match=r"\.partial: is a link"):
        removable(out, store)
    assert (outside / "folder" / "file").exists()


def test_links_in_a_circle_are_no_results(out: Path) -> None:
    (out / ".store" / "train-loop").symlink_to("train-loop")
    (out / "run" / STAGES_FILE).write_text(json.dumps({"train": "../.store/train-loop"}))
    assert "train-loop" not in names(out)


@pytest.mark.parametrize("content", ["[" * 100_000, "3", '{"train": "\\u0000"}'])
def test_a_run_that_does_not_say_what_it_needs_keeps_everything(out: Path, content: str) -> None:
    (out / "run" / STAGES_FILE).write_text(content)
    with pytest.raises(InputError, match=r"stages\.json: cannot be read"):
        removable(out, out / ".store")
