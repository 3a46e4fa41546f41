"""Images that several files here load."""

from pathlib import Path

import pytest

from pipeline.recipe.data import DigitsData, ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from tests.making.photos import (
    SIZE,
    make_folders,
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(DigitsData(kind="digits"), square(SIZE))


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"
