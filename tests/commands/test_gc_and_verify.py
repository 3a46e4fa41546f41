"""Runs are verified and stores are cleared: what is damaged is named, what is needed stays."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.base.checksums import MANIFEST, seal
from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.store import PARTIAL, STAGES_FILE
from pipeline.commands.gc import removable, remove_all
from pipeline.commands.verify import damaged
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes, resolved_yaml
from pipeline.stages.latest import Record
from pipeline.tasks.images.load import decoded_places, load_dataset
from tests.making.cli import pocketnest
from tests.making.projects import make_project
from tests.making.recipes import DEVICE_RECIPES, device_recipe
from tests.making.runs import left_behind


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The output of one run, with two stage results, and one result that no run needs."""
    for stage in ("train-1", "fold-2", "fold-3"):
        place = tmp_path / ".store" / stage
        place.mkdir(parents=True)
        (place / "result").write_text(stage)
        seal(place)
    places = {"train": "../.store/train-1", "fold": "../.store/fold-2"}
    left_behind(tmp_path / "run", device_recipe(), content="a model", stages=places)
    return tmp_path


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


def names(out: Path) -> set[str]:
    return {one.path.name for one in removable(out, out / ".store")}


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


SIDE = 32


@pytest.fixture
def pictured(out: Path, tmp_path: Path) -> ImageFolderData:
    """The run is of folders of images, which lie decoded in the store, and others do, too."""
    for place in ("train/a", "train/b", "test/a", "test/b"):
        folder = tmp_path / "photos" / place
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (SIDE, SIDE), (number, 2, 3)).save(folder / f"{number}.png")
    (recipe,) = load_recipes([DEVICE_RECIPES["onnx"]])
    data = ImageFolderData(
        kind="image_folder", path=str(tmp_path / "photos"), calibration_images=2, crop_pct=1.0
    )
    model = recipe.model.model_copy(update={"input_size": SIDE})
    changed = recipe.model_copy(update={"data": data, "model": model})
    (out / "run" / "recipe.yaml").write_text(resolved_yaml(changed))
    load_dataset(data, square(SIDE), cache=images(out))
    load_dataset(data, square(SIDE * 2), cache=images(out))
    return data


def images(out: Path) -> Path:
    return out / ".store" / "images"


def decoded(out: Path) -> set[Path]:
    return {path for path in images(out).iterdir() if not path.name.startswith(".")}


def test_images_that_no_run_looks_for_go(out: Path, pictured: ImageFolderData) -> None:
    needed = decoded_places(pictured, square(SIDE), images(out))
    assert len(needed) == 2
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
    assert {path.name for path in images(out).iterdir()} == {p.name for p in needed} | {".locks"}
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
    assert len(decoded(out)) == 1, "those of the training folder"


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


def aged(path: Path, days: float) -> None:
    """Have something seem to be last made or used so long ago."""
    then = time.time() - days * 86_400
    for one in (path, *path.glob("*")):
        os.utime(one, (then, then))


def told(out: Path, *arguments: str) -> dict[str, tuple[str, str]]:
    """Whether `gc` lets each thing stay, and why, as the command says it."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        assert main(["gc", str(out), *arguments]) == 0
    lines = [line.split(maxsplit=4) for line in shown.getvalue().splitlines()[:-1]]
    return {name.removesuffix(":"): (does, why) for _, _, does, name, why in lines}


def recorded(out: Path, recipe: Path, *results: str) -> Record:
    """What a run of a recipe has made, or begun, as it writes it down."""
    record = Record(store=out / ".store", recipe=device_recipe(), file=recipe)
    for result in results:
        record.add(result.partition("-")[0], result)
    return record


def test_what_the_latest_run_of_a_recipe_made_stays_as_long_as_the_recipe(
    out: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "phone.yaml"
    recipe.write_text("name: phone\n")
    (out / ".store" / ".partial" / "qat-4").mkdir(parents=True)
    record = recorded(out, recipe, "fold-3", "qat-4")
    for path in (".store/train-1", ".store/fold-3", ".store/.partial/qat-4"):
        aged(out / path, 30)
    aged(record.folder, 30)
    found = told(out, "--dry-run", "--older-than", "0")
    assert found["train-1"] == ("stays", "of the run run")
    assert found["fold-3"] == found["qat-4"] == ("stays", "of the latest run of phone.yaml")
    recipe.rename(tmp_path / "other.yaml")
    found = told(out)
    assert found["fold-3"] == ("goes", "no run was made from it, 30 days old")
    assert found["qat-4"] == ("goes", "of a stage that was stopped, 30 days old")
    assert found[record.folder.name] == (
        "goes",
        "what the latest run of phone.yaml had made, which is gone, 30 days old",
    )
    assert not any((out / path).exists() for path in (".store/fold-3", ".store/.partial/qat-4"))
    assert not record.folder.exists()


def test_a_later_run_of_a_recipe_lets_go_of_what_it_does_not_use(out: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "phone.yaml"
    recipe.write_text("name: phone\n")
    recorded(out, recipe, "fold-3")
    assert "fold-3" not in names(out)
    recorded(out, recipe, "train-1")
    assert "fold-3" in names(out)


def test_what_is_young_stays(out: Path) -> None:
    (out / ".store" / ".partial" / "train-9").mkdir(parents=True)
    found = told(out)
    assert found["fold-3"] == ("stays", "no run was made from it, but less than a day old")
    assert found["train-9"] == ("stays", "of a stage that was stopped, but less than a day old")
    aged(out / ".store" / "fold-3", 3)
    assert told(out)["fold-3"] == ("stays", "no run was made from it, but 3 days old")
    assert told(out, "--older-than", "2.5")["fold-3"][0] == "goes"
    assert "fold-3" not in told(out)


def test_a_saved_state_of_a_stage_that_is_done_goes(out: Path) -> None:
    (out / ".store" / ".partial" / "train-1").mkdir(parents=True)
    assert told(out)["train-1"] == ("goes", "of a stage that is done")
    assert (out / ".store" / "train-1").is_dir()


def test_a_recipe_that_is_gone_was_used_when_it_was_run(out: Path, tmp_path: Path) -> None:
    recorded(out, tmp_path / "gone.yaml", "fold-3")
    aged(out / ".store" / "fold-3", 30)
    assert told(out)["fold-3"] == ("stays", "no run was made from it, but less than a day old")


def test_a_record_that_cannot_be_read_keeps_nothing(out: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "phone.yaml"
    recipe.write_text("name: phone\n")
    record = recorded(out, recipe, "fold-3")
    for content in ("{", "3", "[" * 100_000, '{"fold": "\\u0000"}'):
        (record.folder / STAGES_FILE).write_text(content)
        lines: list[str] = []
        assert "fold-3" in {one.path.name for one in removable(out, out / ".store", lines.append)}
        assert [line for line in lines if "does not say what its recipe needs" in line] == lines
        assert len(lines) == 1


def test_days_are_a_number(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["gc", str(out), "--older-than", "soon"])
    assert "--older-than: got 'soon'; must be a number of at least 0" in capsys.readouterr().err


def test_images_of_a_recipe_that_ended_early_stay(
    out: Path, pictured: ImageFolderData, tmp_path: Path
) -> None:
    shutil.rmtree(out / "run")
    recipe = tmp_path / "phone.yaml"
    recipe.write_text("name: phone\n")
    model = device_recipe().model.model_copy(update={"input_size": SIDE})
    changed = device_recipe().model_copy(update={"data": pictured, "model": model})
    Record(store=out / ".store", recipe=changed, file=recipe).add("train", "train-1")
    found = told(out, "--older-than", "0")
    needed = decoded_places(pictured, square(SIDE), images(out))
    assert decoded(out) == needed
    assert found["train-1"] == ("stays", "of the latest run of phone.yaml")
    assert {found[place.name] for place in needed} == {
        ("stays", "decoded images of a run, or of a recipe")
    }


@pytest.mark.slow
def test_a_training_that_ended_early_on_purpose_stays(tmp_path: Path) -> None:
    """As the guide has it: train, look at the accuracy, go on; and clear the disk between."""
    recipe, out = make_project(tmp_path / "project"), tmp_path / "artifacts"
    done = pocketnest("run", recipe, "--out", out, "--until", "baseline")
    assert done.returncode == 0, done.stderr
    results = sorted(path.name for path in (out / ".store").iterdir() if path.name[0] != ".")
    assert [name.partition("-")[0] for name in results] == ["baseline", "images", "train"]
    pictures = decoded(out)
    for path in (out / ".store").iterdir():
        aged(path, 30)
    found = told(out, "--older-than", "0")
    assert {does for does, _ in found.values()} == {"stays"}
    assert found[results[-1]] == ("stays", "of the latest run of shop.yaml")
    assert decoded(out) == pictures
    done = pocketnest("run", recipe, "--out", out, "--until", "baseline")
    assert "train     reused" in done.stdout
    assert "baseline  reused" in done.stdout
