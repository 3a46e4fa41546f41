"""Runs are verified and stores are cleared: what is damaged is named, what is needed stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipeline.base.checksums import MANIFEST, seal
from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.store import PARTIAL, STAGES_FILE
from pipeline.commands.gc import removable, remove_all
from pipeline.commands.verify import damaged
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.load import decoded_places, load_dataset
from tests.making.cleared import SIDE, decoded, images, names


def verify(directory: Path) -> tuple[list[Path], list[str]]:
    """What was looked at and found damaged in a run that lies beside its store."""
    looked_at, faults, notes = damaged(directory)
    assert notes == []
    return looked_at, faults


def test_a_whole_run(out: Path) -> None:
    (out / "run" / "debug.csv").write_text("added since")
    looked_at, faults = verify(out / "run")
    assert {place.name for place in looked_at} == {"run", "train-1", "fold-2"}
    assert faults == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("run/model.onnx", "model.onnx is not what was written"),
        ("run/labels.txt", "labels.txt is not what was written"),
        (".store/train-1/result", "result is not what was written"),
        (f".store/fold-2/{MANIFEST}", "not an entry"),
    ],
)
def test_every_damage_is_named(out: Path, name: str, says: str) -> None:
    (out / name).write_text("another")
    _, (fault,) = verify(out / "run")
    assert says in fault
    assert str((out / name).parent) in fault


def test_lost_results_are_named(out: Path) -> None:
    shutil.rmtree(out / ".store" / "train-1")
    _, (fault,) = verify(out / "run")
    assert fault == f"{out / '.store' / 'train-1'}: {MANIFEST} is missing"


def test_a_stage_outside_the_store_is_refused(out: Path) -> None:
    (out / "run" / STAGES_FILE).write_text(json.dumps({"train": "../.store/train-1", "fold": "/"}))
    seal(out / "run")
    places, (fault,) = verify(out / "run")
    assert len(places) == 3
    where = out / "run" / STAGES_FILE
    assert fault.startswith(f"{where}: says that stage fold is in /, which is not in {out}/.store")


def test_a_store_that_is_elsewhere_is_named_as_the_run_names_it(out: Path) -> None:
    (out / ".store").rename(out / "away")
    (out / ".store").symlink_to("nowhere")
    _, faults = verify(out / "run")
    assert {fault.split(": ")[0] for fault in faults} == {
        str(out / ".store" / "train-1"),
        str(out / ".store" / "fold-2"),
    }


def left_over(out: Path) -> None:
    """What killed processes leave."""
    for name in (".making-fold-9-x", ".damaged-fold-9-y", ".old-fold-9-1", ".partial/train-9"):
        (out / ".store" / name).mkdir(parents=True)
        (out / ".store" / name / "part").write_bytes(bytes(1000))
    (out / ".making-run").mkdir()
    (out / ".store" / "images" / "kept").mkdir(parents=True)


def test_what_no_run_needs_goes(out: Path) -> None:
    left_over(out)
    found = removable(out, out / ".store")
    leftovers = {".making-fold-9-x", ".damaged-fold-9-y", ".old-fold-9-1", "train-9", ".making-run"}
    assert {one.path.name for one in found} == {"fold-3", "kept", *leftovers}
    assert {one.size_bytes for one in found if one.path.name in leftovers - {".making-run"}} == {
        1000
    }
    remove_all(found)
    assert names(out) == set()
    assert verify(out / "run")[1] == []
    assert (out / ".store" / "images").is_dir()


@pytest.fixture
def busy(out: Path) -> Iterator[None]:
    """A living process makes fold-9 and train-9, and publishes a run."""
    locks = out / ".store" / ".locks"
    with (
        held(locks / "fold-9.json", lambda owner: None),
        held(locks / "train-9.json", lambda owner: None),
        held(locks / "publish-run.json", lambda owner: None),
    ):
        yield


def test_what_a_living_process_works_on_stays(out: Path, busy: None) -> None:
    left_over(out)
    assert names(out) == {"fold-3", "kept"}


def test_results_stay_while_a_run_is_at_work(out: Path) -> None:
    left_over(out)
    with held(out / ".store" / ".locks" / "run-here-1.json", lambda owner: None):
        assert "fold-3" not in names(out)
        assert ".damaged-fold-9-y" in names(out)
    assert "fold-3" in names(out)


def test_locks_of_ended_processes_go(out: Path) -> None:
    lock = out / ".store" / ".locks" / "fold-9.json"
    with held(lock, lambda owner: None):
        owner = json.loads(lock.read_text())
    # Whatever the machine was called: this lock is nobody's any more.
    lock.write_text(json.dumps(owner | {"host": "elsewhere"}))
    assert "fold-9.json" in names(out)
    with held(lock, lambda owner: None):
        assert "fold-9.json" not in names(out)
    lock.write_text(json.dumps(owner))
    found = removable(out, out / ".store")
    with held(lock, lambda owner: None):
        remove_all(found)
        assert lock.exists(), "it was taken in the meantime"
    lock.write_text(json.dumps(owner))
    remove_all(removable(out, out / ".store"))
    assert not lock.exists()


def test_what_is_needed_must_be_known(out: Path) -> None:
    (out / "run" / STAGES_FILE).write_text("{")
    with pytest.raises(InputError, match=r"stages\.json: cannot be read .* run the recipe again"):
        removable(out, out / ".store")
    with pytest.raises(InputError, match="not a folder of runs"):
        removable(out / "run", out / "run" / ".store")


def test_links_are_removed_and_not_what_they_lead_to(
    out: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("x")
    store = out / ".store"
    for name in ("fold-link", ".making-link"):
        (store / name).symlink_to(outside)
    (store / "fold-file").write_text("a file where a folder belongs")
    remove_all(removable(out, store))
    assert not any((store / name).is_symlink() for name in ("fold-link", ".making-link"))
    assert not (store / "fold-file").exists()
    (store / PARTIAL).symlink_to(outside)
    with pytest.raises(InputError, match=r"\.partial: is a link"):
        removable(out, store)
    assert (outside / "precious").read_text() == "x"


def test_links_in_a_circle_are_no_results(out: Path) -> None:
    (out / ".store" / "fold-loop").symlink_to("fold-loop")
    (out / "run" / STAGES_FILE).write_text(json.dumps({"fold": "../.store/fold-loop"}))
    assert "fold-loop" not in names(out)


@pytest.mark.parametrize("content", ["[" * 100_000, "3", '{"train": "\\u0000"}'])
def test_a_run_that_does_not_say_what_it_needs_keeps_everything(out: Path, content: str) -> None:
    (out / "run" / STAGES_FILE).write_text(content)
    with pytest.raises(InputError, match=r"stages\.json: cannot be read"):
        removable(out, out / ".store")


def test_images_that_no_run_looks_for_go(out: Path, pictured: ImageFolderData) -> None:
    needed = decoded_places(pictured, square(SIDE), images(out))
    assert len(needed) == 2 * 2, "two folders, decoded and indexed"
    assert needed < decoded(out)
    with held(out / ".store" / ".locks" / "run-here-1.json", lambda owner: None):
        remove_all(removable(out, out / ".store"))
        assert needed < decoded(out), "a run is at work"
    spare = next(iter(decoded(out) - needed))
    with held(images(out) / ".locks" / f"{spare.name}.json", lambda owner: None):
        (images(out) / f".making-{spare.name}-x").mkdir()
        remove_all(removable(out, out / ".store"))
        assert decoded(out) == needed | {spare}, "somebody decodes them"
        assert (images(out) / f".making-{spare.name}-x").is_dir()
    remove_all(removable(out, out / ".store"))
    assert decoded(out) == needed
    beside = {path.name for path in images(out).iterdir() if path.name.startswith(".")}
    assert beside == {".index", ".locks"}
    before = load_dataset(pictured, square(SIDE))
    assert load_dataset(pictured, square(SIDE), cache=images(out)).sha256 == before.sha256
    assert decoded(out) == needed, "they were found, not decoded again"


def test_images_of_a_folder_that_changed_go(
    out: Path, pictured: ImageFolderData, tmp_path: Path
) -> None:
    before = decoded_places(pictured, square(SIDE), images(out))
    Image.new("RGB", (SIDE, SIDE), (99, 2, 3)).save(tmp_path / "photos" / "test" / "a" / "9.png")
    remove_all(removable(out, out / ".store"))
    assert decoded(out) < before
    assert len(decoded(out)) == 1 + 2, "those of the training folder, and both indexes"


def test_images_stay_where_it_is_not_known_which_are_needed(
    out: Path, pictured: ImageFolderData, tmp_path: Path
) -> None:
    (tmp_path / "photos").rename(tmp_path / "unplugged")
    told: list[str] = []
    before = decoded(out)
    remove_all(removable(out, out / ".store", told.append))
    assert decoded(out) == before
    assert "decoded images all stay" in told[0]
    assert f"{tmp_path / 'photos'} does not exist" in told[0]
    shutil.rmtree(out / "run")
    remove_all(removable(out, out / ".store", told.append))
    assert decoded(out) == set(), "no run needs any"
