"""CIFAR, from its own archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import CifarData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.dataset import Dataset, array_dataset, split_calibration
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.statistics import mean_and_std

_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


def cifar_classes(config: CifarData) -> tuple[str, ...]:
    """The classes of CIFAR-10 or CIFAR-100, read from its archive with the test images."""
    return tuple(_parts(config, (False,))[0].classes)


def cifar_dataset(config: CifarData, shape: InputShape, seed: int) -> Dataset:
    """CIFAR-10 or CIFAR-100, read from its archive."""
    parts = _parts(config, (True, False))
    whole, test = (
        Images(
            labels=torch.tensor(part.targets, dtype=torch.int64),
            shape=shape,
            source=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
        )
        for part in parts
    )
    where = f"the training set of {config.kind}"
    left, drawn = split_calibration(whole.labels, config.calibration_images, seed, where)
    sets = {"train": whole.take(left), "calibration": whole.take(drawn), "test": test}
    return array_dataset(config.kind, parts[0].classes, sets, *mean_and_std(config, shape.channels))


def _parts(config: CifarData, wanted: Sequence[bool]) -> list[Any]:
    """The training images for True and the test images for False, as torchvision has them.

    Raises:
        InputError: they are not there, or cannot be fetched.
    """
    # torchvision takes seconds to import, and only these two datasets need it.
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.kind]
    folder = Path(config.path) / source.base_folder
    by_hand = f"unpack {source.filename} from {_CIFAR_PAGE} in {config.path}"
    try:
        first = source(config.path, train=wanted[0], download=config.download)
        return [first, *(source(config.path, train=train) for train in wanted[1:])]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if config.download:
            raise InputError(
                f"data.download: could not fetch {source.url} ({reason}); "
                f"check the network, or {by_hand}"
            ) from error
        # torchvision gives one message for absent and for damaged files.
        state = "its files are incomplete or damaged" if folder.is_dir() else "no such folder"
        raise InputError(
            f"data.path: looked for {config.kind} in {folder}: {state}; "
            f"set data.download: true, or {by_hand}"
        ) from error
