"""The digits of scikit-learn, embedded."""

from __future__ import annotations

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
    # scikit-learn takes a second to import, and only this dataset needs it.
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images)  # 1,797 images of 8 x 8, values 0 to 16
    pixels = (grey * 255 / 16).round().to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    if config.tile is not None:
        pixels = _tiled(pixels, config.tile, shape)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    images = Images(labels=labels, shape=shape, source=pixels)
    tested = draw_stratified(labels, _DIGITS_TEST, seed=0).sort().values
    rest = images.take(others(len(images), tested))
    left, drawn = split_calibration(rest.labels, config.calibration_images, seed, "digits")
    test = images.take(tested[: config.test_images])
    sets = {"train": rest.take(left), "calibration": rest.take(drawn), "test": test}
    return array_dataset("digits", DIGITS, sets, *mean_and_std(config, shape.channels))


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
