"""A recipe that `init` writes is one that `check` and `run` take."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.recipe.data import DigitsData, ImageFolderData, WebDatasetData
from pipeline.recipe.first import DEVICES, Answers, recipe_text
from pipeline.recipe.recipe import Recipe, load_recipes
from tests.making.cli import command, environment, pocketnest

AWKWARD = "a folder: with #signs & 'quotes'"


def written(folder: Path, answers: Answers) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mine.yaml"
    file.write_text(recipe_text(answers, folder), encoding="utf-8")
    (recipe,) = load_recipes([file])
    return recipe


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pixels", [False, True])
def test_every_device_has_a_recipe(device: str, pixels: bool, tmp_path: Path) -> None:
    recipe = written(tmp_path, Answers(device=device, input_size=64, size_mb=7.5, pixels=pixels))
    assert (recipe.name, recipe.target.format) == ("mine", DEVICES[device].format)
    assert recipe.target.takes_pixels is pixels
    assert (recipe.model.input_size, recipe.budgets.size_mb) == (64, 7.5)
    assert isinstance(recipe.data, DigitsData)
    assert recipe.budgets.speedup == DEVICES[device].speedup
    assert recipe.prune is not None
    assert recipe.prune.macs == 0.5


def test_the_command_line_knows_every_device(tmp_path: Path) -> None:
    done = pocketnest("init", tmp_path / "x.yaml", "--device", "toaster")
    assert done.returncode == 2
    assert all(repr(name) in done.stderr for name in DEVICES)
    assert done.stderr.count("'") == 2 * len(DEVICES) + 2, "and no other"


def test_paths_lead_there_from_where_the_recipe_lies(tmp_path: Path) -> None:
    photos = tmp_path / AWKWARD
    answers = Answers(
        device="android",
        train=photos / "train",
        test=photos / "test",
        checkpoint=photos / "resnest50.pth",
    )
    recipe = written(tmp_path / "recipes" / "deep", answers)
    assert isinstance(recipe.data, ImageFolderData)
    assert os.path.samefile(Path(recipe.data.train).parent.parent, tmp_path)
    assert Path(os.path.normpath(recipe.data.train)) == photos / "train"
    assert [os.path.normpath(path) for path in recipe.data.test.values()] == [str(photos / "test")]
    assert recipe.model.checkpoint is not None
    assert os.path.normpath(recipe.model.checkpoint) == str(photos / "resnest50.pth")


def test_a_folder_of_weights_ends_in_a_slash(tmp_path: Path) -> None:
    given = tmp_path / AWKWARD / "resnest50d.in1k"
    given.mkdir(parents=True)
    answers = Answers(device="android", checkpoint=given)
    recipe = written(tmp_path / "recipes", answers)
    assert recipe.model.checkpoint == f"{given}/"


def test_flags_answer_every_question(tmp_path: Path) -> None:
    file = tmp_path / "phone.yaml"
    done = pocketnest("init", file, "--device", "iphone", "--size-mb", "12", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(file) in done.stdout
    done = pocketnest("check", file)
    assert (done.returncode, done.stdout) == (0, "phone: ok (coreml, int8)\n")
    assert file.read_text().count("#") > 15, "it explains itself"


def test_nothing_is_written_over_or_asked_where_nobody_answers(tmp_path: Path) -> None:
    file = tmp_path / "phone.yaml"
    done = pocketnest("init", file, cwd=tmp_path)
    assert done.returncode == 2
    assert "--device" in done.stderr
    closed = " ".join([*map(shlex.quote, command("init", file)), "<&-"])
    done = subprocess.run(
        ["bash", "-c", closed], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device: not given"), done.stderr
    file.write_text("mine")
    done = pocketnest("init", file, "--device", "android", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{file}: is there already" in done.stderr
    assert file.read_text() == "mine"
    done = pocketnest("init", tmp_path / "new.yaml", "--device", "android", "--train", "photos")
    assert done.returncode == 2
    assert "--train and --test" in done.stderr


def test_shards_are_told_from_folders(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x-train-0.tar").touch()
    (tmp_path / "photos").mkdir()
    for name in ("shards", "shards/x-train-0.tar", "shards/x-*"):
        answers = Answers(device="android", train=tmp_path / name, test=tmp_path / name)
        data = written(tmp_path / "recipes" / name.replace("*", "all"), answers).data
        assert isinstance(data, WebDatasetData)
        assert os.path.normpath(str(data.train)) == str(tmp_path / name)
    answers = Answers(device="android", train=tmp_path / "photos", test=tmp_path / "gone")
    assert isinstance(written(tmp_path / "recipes" / "one", answers).data, ImageFolderData)
