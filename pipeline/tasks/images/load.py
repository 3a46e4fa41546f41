"""The images of a recipe, from wherever it says."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.recipe.data import CifarData, DataConfig
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.cifar import cifar_classes, cifar_dataset
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.digits import DIGITS, digits_dataset
from pipeline.tasks.images.folders import folder_classes, folder_places, folders_dataset
from pipeline.tasks.images.pixels import decode, middle
from pipeline.tasks.images.preparation import preparation_of
from pipeline.tasks.images.shards import shard_classes, shard_places, shards_dataset


def load_dataset(
    config: DataConfig, shape: InputShape, seed: int = 0, cache: Path | None = None
) -> Dataset:
    """Load the data of a recipe; the same arguments give the same dataset, image by image.

    Args:
        config: the recipe's `data`.
        shape: of a delivered image.
        seed: picks which training images calibrate. Test sets never depend on it.
        cache: directory that keeps the decoded images of folders and shards for later runs.
            Without it they are decoded in every run.

    Raises:
        InputError: data is missing, unreadable or does not fit together.
    """
    if config.kind == "digits":
        return digits_dataset(config, shape, seed)
    if config.kind == "image_folder":
        return folders_dataset(config, shape, seed, cache)
    if config.kind == "webdataset":
        return shards_dataset(config, shape, seed, cache)
    return cifar_dataset(_cifar(config), shape, seed)


def class_names(config: DataConfig) -> tuple[str, ...]:
    """The classes of a recipe's data in the order of the labels; no image is decoded.

    Raises:
        InputError: the training images are missing, or a class has none.
    """
    if config.kind == "digits":
        return DIGITS
    if config.kind == "image_folder":
        return folder_classes(config)
    if config.kind == "webdataset":
        return shard_classes(config)
    return cifar_classes(_cifar(config))


def _cifar(config: DataConfig) -> CifarData:
    """The rest of what holds images with classes.

    Raises:
        InputError: it holds none.
    """
    if not isinstance(config, CifarData):
        raise InputError(f"data.kind: got {config.kind}, whose images have no class each")
    return config


def decoded_places(config: DataConfig, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` `load_dataset` looks for decoded images, whether they are there or not.

    Args:
        config: the recipe's `data`.
        shape: as of `load_dataset`.
        cache: as of `load_dataset`.

    Raises:
        InputError: a folder or shard of images is not what it was, or cannot be looked at.
    """
    if config.kind == "image_folder":
        return folder_places(config, shape, cache)
    return shard_places(config, shape, cache) if config.kind == "webdataset" else set()


def decoded(config: DataConfig, content: bytes, file: Path, shape: InputShape) -> Tensor:
    """An image file's content as the images of a recipe are: uint8 [C, H, W].

    Raises:
        InputError: `content` is not an image that can be decoded; `file` is named.
    """
    return middle(torch.tensor(decode(content, file, preparation_of(config, shape))), shape)
