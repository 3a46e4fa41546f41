"""Folders of random images, and what is compared of the sets that are loaded from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.preparation import Preparation

SIZE = 32


def plain(side: int) -> Preparation:
    """How a photo becomes a square without a margin."""
    return Preparation(shape=square(side))


def write_image(file: Path, seed: int, width: int = 40, height: int = 36) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


def make_folders(root: Path) -> ImageFolderData:
    """Three classes of 6, 4 and 3 training images; two test sets of 2 images a class."""
    seed = 0
    for part, counts in {"train": (6, 4, 3), "day": (2, 2, 2), "night": (2, 2, 2)}.items():
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            for index in range(count):
                suffix = ("png", "jpg")[index % 2]
                write_image(root / part / name / f"{index}.{suffix}", seed)
                seed += 1
    return folder_config(root)


def folder_config(root: Path, **changes: Any) -> ImageFolderData:
    tests = {"day": root / "day", "night": root / "night"}
    fields = {"kind": "image_folder", "train": root / "train", "test": tests}
    fields |= {"calibration_images": 5} | changes
    fields["train"] = str(fields["train"])
    fields["test"] = {name: str(path) for name, path in fields["test"].items()}
    return ImageFolderData.model_validate(fields)


def all_sets(dataset: Dataset) -> dict[str, Images]:
    return {"train": dataset.train, "calibration": dataset.calibration, **dataset.tests}


def every_pixel(images: Images) -> torch.Tensor:
    return images.pixels(torch.arange(len(images)))


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.sha256 == other.sha256
    assert one.classes == other.classes
    assert list(all_sets(one)) == list(all_sets(other))
    for name, images in all_sets(one).items():
        assert torch.equal(images.labels, all_sets(other)[name].labels)
        assert torch.equal(every_pixel(images), every_pixel(all_sets(other)[name]))
