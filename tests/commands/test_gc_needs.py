"""What somebody will want next stays when a store is cleared."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.base.store import STAGES_FILE
from pipeline.commands.gc import removable
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.stages.latest import Record
from pipeline.tasks.images.load import decoded_places
from tests.making.cleared import SIDE, decoded, images, names, told
from tests.making.cli import pocketnest
from tests.making.projects import make_project
from tests.making.recipes import device_recipe


def aged(path: Path, days: float) -> None:
    """Have something seem to be last made or used so long ago."""
    then = time.time() - days * 86_400
    for one in (path, *path.glob("*")):
        os.utime(one, (then, then))


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
        ("stays", f"{what} of a run, or of a recipe")
        for what in ("decoded images", "hashes of images")
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
