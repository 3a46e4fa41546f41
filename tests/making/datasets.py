"""Datasets for tests, and what is asked of them."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import Images
from tests.making.photos import (
    SIZE,
)

GENTLE = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def torn(file: Path) -> Path:
    """A copy of an image beside it, cut off."""
    copy = file.with_name(f"torn{file.suffix}")
    copy.write_bytes(file.read_bytes()[:200])
    return copy


def in_memory(count: int) -> tuple[Images, Dataset]:
    """Images whose every pixel is their own number, so that a batch shows who is in it."""
    numbers = torch.arange(count, dtype=torch.uint8)
    source = numbers[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    images = Images(labels=torch.arange(count) % 2, shape=square(4), source=source)
    dataset = Dataset(
        name="numbers",
        classes=("even", "odd"),
        train=images,
        calibration=images,
        tests={"test": images},
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        sha256="",
        training_sha256="",
    )
    return images, dataset


def complaint(config: ImageFolderData) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(config, square(SIZE))
    return str(caught.value)
