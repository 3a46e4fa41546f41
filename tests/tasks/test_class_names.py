"""Class names come without an image decoded; a finished run's images from its own store."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.base.store import IMAGES, STORE
from pipeline.recipe.data import DigitsData, ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images import pixels
from pipeline.tasks.images.load import class_names, load_dataset

RECIPE = Path(__file__).parents[2] / "recipes/resnest50/linux-arm-onnxruntime-int8.yaml"


def folders(root: Path) -> ImageFolderData:
    for part in ("train", "test"):
        for name, value in (("cat", 40), ("ant", 200)):
            (root / part / name).mkdir(parents=True)
            for number in range(3):
                shade = np.full((32, 32, 3), value + number, np.uint8)
                Image.fromarray(shade).save(root / part / name / f"{number}.png")
    return ImageFolderData(kind="image_folder", path=root, calibration_images=2)


def test_class_names_are_those_of_the_data_and_nothing_is_decoded(tmp_path: Path) -> None:
    config = folders(tmp_path)
    assert class_names(config) == load_dataset(config, square(32)).classes == ("ant", "cat")
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"no image")
    assert class_names(config) == ("ant", "cat")
    digits = DigitsData(kind="digits")
    assert class_names(digits) == load_dataset(digits, square(32)).classes
    for file in (tmp_path / "train" / "ant").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"one class only, 'cat' \(no image is in 'ant'\)"):
        class_names(config)


def test_a_finished_run_decodes_no_image_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folders(tmp_path / "photos")
    (recipe,) = load_recipes([RECIPE])
    side = recipe.model.input_size
    first = load_dataset(config, square(side), cache=tmp_path / "out" / STORE / IMAGES)
    run = Finished(
        directory=tmp_path / "out" / "one",
        recipe=recipe.model_copy(update={"data": config}),
        file=tmp_path / "model.onnx",
        classes=first.classes,
    )

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(pixels, "read_files", refuse)
    assert run.dataset().sha256 == first.sha256
