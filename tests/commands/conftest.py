"""Output folders that several files here clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline.base.checksums import seal
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes, resolved_yaml
from pipeline.tasks.images.load import load_dataset
from tests.making.cleared import SIDE, images
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
