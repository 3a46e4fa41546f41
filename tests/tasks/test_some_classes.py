"""Folders that hold some of a network's classes, and images to calibrate on that have none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.known import KNOWN
from pipeline.tasks.images.calibration import check_calibration
from pipeline.tasks.images.load import class_names, load_dataset
from tests.making.photos import SIZE, every_pixel, make_folders, write_image

NAMES = ("zebra", "cat", "ant", "bee")


def config(root: Path, names: str | None = None, **changes: Any) -> ImageFolderData:
    """Classes in an order of their own; calibration images beside a folder of more of them."""
    make_folders(root)
    for index in range(6):
        write_image(root / "some" / ("" if index % 2 else "inner") / f"{index}.png", 100 + index)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n" if names is None else names)
    fields = {
        "kind": "image_folder",
        "classes": root / "classes.txt",
        "calibration": root / "some",
        "test": {"day": root / "day"},
    }
    return ImageFolderData.model_validate(fields | changes)


def test_labels_follow_the_file_of_classes(tmp_path: Path) -> None:
    given = config(tmp_path, train=tmp_path / "train")
    dataset = load_dataset(given, square(SIZE))
    assert dataset.classes == class_names(given) == NAMES
    assert dataset.tests["day"].labels.tolist() == [2, 2, 3, 3, 1, 1]
    assert torch.bincount(dataset.train.labels).tolist() == [0, 3, 6, 4]


def test_calibration_images_are_those_of_their_folder_and_training_keeps_all(
    tmp_path: Path,
) -> None:
    given = config(tmp_path, train=tmp_path / "train", calibration_images=4)
    dataset = load_dataset(given, square(SIZE))
    assert (len(dataset.train), len(dataset.calibration)) == (13, 4)
    every = load_dataset(given.model_copy(update={"calibration_images": 99}), square(SIZE))
    assert len(every.calibration) == 6
    assert every.training_sha256 != dataset.training_sha256
    found = {image.numpy().tobytes() for image in every_pixel(dataset.calibration)}
    assert len(found) == 4
    assert found < {image.numpy().tobytes() for image in every_pixel(every.calibration)}


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_to_train_on_is_a_set_of_no_images(tmp_path: Path, cached: bool) -> None:
    given = config(tmp_path)
    cache = tmp_path / "cache" if cached else None
    dataset = load_dataset(given, square(SIZE), cache=cache)
    assert len(dataset.train) == 0
    assert len(every_pixel(dataset.train)) == 0
    assert len(dataset.calibration) == 6
    assert check_calibration(dataset) == ()


def test_a_test_set_may_lack_classes_and_even_have_one(tmp_path: Path) -> None:
    write_image(tmp_path / "one" / "bee" / "0.png", 7)
    given = config(tmp_path, test={"one": tmp_path / "one"})
    assert load_dataset(given, square(SIZE)).tests["one"].labels.tolist() == [3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ant\nbee\n", r"data\.test\.day: class folders that data\.classes .* 'cat'"),
        ("ant\nant\ncat", r"holds ant more than once; give the name of a class in every line"),
        ("ant\n\ncat", r"holds an empty line \(2\)"),
        ("ant", "holds 1 names"),
        ("", "holds 0 names"),
    ],
)
def test_a_file_of_classes_that_cannot_be_meant(tmp_path: Path, names: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(config(tmp_path, names), square(SIZE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": "gone.txt"}, r"data\.classes: gone\.txt: cannot be read"),
        ({"calibration": "gone"}, r"data\.calibration: gone does not exist"),
        ({"calibration": "empty"}, r"data\.calibration: empty holds no images"),
    ],
)
def test_files_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        load_dataset(config(tmp_path, **change), square(SIZE))


RECIPE = """\
model: {name: "torchvision:mobilenet_v2", input_size: 32, checkpoint: a.pth}
data: {kind: image_folder, classes: c.txt, calibration: photos, test: {day: d}}
train: {epochs: 0}
qat: {train: {epochs: 0}}
target: {device: any, format: onnx, precision: int8}
"""
LATER = "{epochs: 1, batch_size: 8, learning_rate: 0.1}"


def test_a_recipe_without_training_images_trains_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(RECIPE)
    (recipe,) = load_recipes([file], known=KNOWN)
    assert isinstance(recipe.data, ImageFolderData)
    assert recipe.data.calibration == tmp_path / "photos"
    assert recipe.data.classes == tmp_path / "c.txt"
    for change, key in {
        f"qat.train={LATER}": "qat",
        f"prune={{macs: 0.5, finetune: {LATER}}}": "prune",
        "model.checkpoint=null": "train",
        "data.classes=null": r"data\.train",
        "data.calibration=null": r"data\.train",
    }.items():
        with pytest.raises(InputError, match=rf"{key}: .*(training images|missing)"):
            load_recipes([file], [change], KNOWN)
