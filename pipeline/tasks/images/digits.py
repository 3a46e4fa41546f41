"""The digits of scikit-learn, embedded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.dataset import (
    Dataset,
    array_dataset,
    draw_stratified,
    others,
    split_calibration,
)
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.statistics import mean_and_std

_DIGITS_TEST = 450
DIGITS = tuple(str(digit) for digit in range(10))
"""The classes."""


def digits_dataset(config: DigitsData, shape: InputShape, seed: int) -> Dataset:
    """The handwritten digits of scikit-learn, each drawn larger."""
    grey, labels = grey_digits()
    pixels = (grey * 255 / 16).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    if config.tile is not None:
        pixels = _tiled(pixels, config.tile, shape)
    images = Images(labels=labels, shape=shape, source=pixels)
    tested = draw_stratified(labels, _DIGITS_TEST, seed=0).sort().values
    rest = images.take(others(len(images), tested))
    left, drawn = split_calibration(rest.labels, config.calibration_images, seed, "digits")
    test = images.take(tested[: config.test_images])
    sets = {"train": rest.take(left), "calibration": rest.take(drawn), "test": test}
    return array_dataset("digits", DIGITS, sets, *mean_and_std(config, shape.channels))


def grey_digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 8 x 8, values 0 to 16, float64, and their classes, int64.

    From the file that scikit-learn's `load_digits` reads: to import that takes longer than
    everything else that a run does whose stages are all reused.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = torch.from_numpy(np.loadtxt(file, delimiter=","))
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].to(torch.int64)


def _tiled(pixels: Tensor, tile: int, shape: InputShape) -> Tensor:
    """Images (images, 3, 8, 8) as parts of sheets on which each is repeated.

    Drawn as large as the longer side, a sheet shows an image `tile` pixels wide.
    """
    size = max(shape.height, shape.width)
    shown, rest = divmod(pixels.shape[-1] * size, tile)
    if rest:
        raise InputError(
            f"data.tile: got {tile}; {pixels.shape[-1]} times model.input_size ({size}) must be a "
            "multiple of it"
        )
    times = -(-shown // pixels.shape[-1])
    return pixels.repeat(1, 1, times, times)[:, :, :shown, :shown].contiguous()
