"""What a bad dataset is told."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.load import load_dataset
from tests.making.datasets import complaint
from tests.making.photos import (
    SIZE,
    assert_same,
    every_pixel,
    folder_config,
    write_image,
)


def test_all_missing_paths_are_named_at_once(folders: ImageFolderData, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "train")
    shutil.rmtree(tmp_path / "night")
    (tmp_path / "night").write_text("")
    lines = complaint(folders).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"data.train: {tmp_path / 'train'} does not exist")
    assert lines[1].startswith(f"data.test.night: {tmp_path / 'night'} is not a folder")


def test_one_path_stands_for_all_folders(folders: ImageFolderData, tmp_path: Path) -> None:
    (tmp_path / "day").rename(tmp_path / "test-day")
    (tmp_path / "night").rename(tmp_path / "validation")
    (tmp_path / "readme.txt").write_text("")
    (tmp_path / "notes").mkdir()
    config = ImageFolderData(path=tmp_path, calibration_images=5)
    dataset = load_dataset(config, square(SIZE))
    assert (len(dataset.train), list(dataset.tests)) == (8, ["test-day", "validation"])
    tests = {"day": str(tmp_path / "test-day"), "night": str(tmp_path / "validation")}
    apart = load_dataset(folder_config(tmp_path, test=tests), square(SIZE))
    assert torch.equal(every_pixel(dataset.train), every_pixel(apart.train))


def test_a_path_without_training_or_test_images_says_what_it_holds(
    folders: ImageFolderData, tmp_path: Path
) -> None:
    config = ImageFolderData(path=tmp_path)
    wanted = f"data.path: {tmp_path} holds day, night, train; it must hold train/<class>/ and test"
    assert wanted in complaint(config)
    assert "does not exist" in complaint(ImageFolderData(path=tmp_path / "nowhere"))
    (tmp_path / "day").rename(tmp_path / "test set")
    assert f"data.path: {tmp_path / 'test set'}: " in complaint(config)


def test_where_images_are_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.path says where the images are; remove one"):
        folder_config(tmp_path, path=str(tmp_path))
    with pytest.raises(ValueError, match="Field required"):
        ImageFolderData()


def test_a_folder_without_classes_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train" / ".hidden").mkdir(parents=True)
    assert f"data.train: {tmp_path / 'train'} is empty" in complaint(folders)


def test_a_single_class_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    for part in ("train", "day", "night"):
        shutil.rmtree(tmp_path / part / "ant")
        shutil.rmtree(tmp_path / part / "bee")
    assert "data.train" in complaint(folders)
    assert "one class only, 'cat'" in complaint(folders)


def test_an_empty_class_is_named(folders: ImageFolderData, tmp_path: Path) -> None:
    for file in (tmp_path / "day" / "bee").iterdir():
        file.rename(file.with_suffix(".heic"))
    assert f"data.test.day: class 'bee' has no images in {tmp_path / 'day' / 'bee'}" in complaint(
        folders
    )


def test_differing_test_classes_are_named(folders: ImageFolderData, tmp_path: Path) -> None:
    (tmp_path / "night" / "cat").rename(tmp_path / "night" / "owl")
    message = complaint(folders)
    assert message.startswith("data.test.night: class folders differ")
    assert "missing 'cat'; not in train 'owl'" in message


def test_unreadable_images_are_named(folders: ImageFolderData, tmp_path: Path) -> None:
    torn, text = tmp_path / "train" / "ant" / "0.png", tmp_path / "night" / "cat" / "1.jpg"
    torn.write_bytes(torn.read_bytes()[:300])
    text.write_text("not a picture")
    lines = complaint(folders).splitlines()
    assert len(lines) == 2
    assert str(torn) in lines[0]
    assert f"{text}: not an image" in lines[1]


def test_many_unreadable_images_are_counted(folders: ImageFolderData, tmp_path: Path) -> None:
    for index in range(14):
        (tmp_path / "day" / "ant" / f"bad{index:02}.png").write_bytes(b"")
    lines = complaint(folders).splitlines()
    assert len(lines) == 11
    assert "4 more" in lines[-1]


def test_an_image_that_breaks_later_is_named(
    folders: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    torn = tmp_path / "day" / "ant" / "0.png"
    torn.write_bytes(torn.read_bytes()[:300])
    day = load_dataset(folders, square(SIZE)).tests["day"]
    with pytest.raises(InputError, match=r"ant/0\.png"):
        every_pixel(day)
    torn.unlink()
    with pytest.raises(InputError, match=r"ant/0\.png: No such file"):
        every_pixel(day)
    torn.write_bytes(b"text")
    assert str(torn) in complaint(folders)


def test_more_calibration_images_than_can_be_spared_are_refused(folders: ImageFolderData) -> None:
    message = complaint(folders.model_copy(update={"calibration_images": 11}))
    assert message.startswith("data.calibration_images: got 11;")
    assert "13 images in 3 classes" in message
    assert "at most 10" in message
    kept = load_dataset(folders.model_copy(update={"calibration_images": 10}), square(SIZE))
    assert sorted(kept.train.labels.tolist()) == [0, 1, 2]


def test_other_files_and_nested_folders(folders: ImageFolderData, tmp_path: Path) -> None:
    before = load_dataset(folders, square(SIZE))
    (tmp_path / "train" / "notes.txt").write_text("")
    (tmp_path / "train" / "ant" / "Thumbs.db").write_text("")
    (tmp_path / "train" / "ant" / "._0.png").write_text("")
    assert_same(before, load_dataset(folders, square(SIZE)))
    write_image(tmp_path / "train" / "ant" / "more" / "DEEP.PNG", seed=99)
    assert len(load_dataset(folders, square(SIZE)).train) == len(before.train) + 1
