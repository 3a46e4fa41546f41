"""Whether the calibration images can set ranges: judged on a sample, before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images

_SAMPLE = 64
"""Images of a set that are looked at: a moment's work, even where they are yet to be decoded."""
_SAME_LEVELS = 2
"""Of 255: what compression makes of equal pixels. The noise of any camera is more."""
_FEWEST, _BEYOND, _GAP_LEVELS = 16, 0.25, 8
"""Two sets have other ranges where each of the calibration images, at least so many, lies beyond
the outer quarter of the training images, by so many levels of 255. They are drawn from the same
folder: by chance that happens once in four billion sets (0.25 to the 16th)."""
_OUTSIDE = 0.5
_CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
"""Names, by how many there are."""


def check_calibration(dataset: Dataset) -> tuple[str, ...]:
    """Judge the calibration images of a dataset.

    Returns:
        A line for the user about every test set most of whose pixels are outside of what the
        calibration images hold. That may be as it should: a night set is dark.

    Raises:
        InputError: the images are all the same, are each of one colour, or have another range
            than those that are trained on.
    """
    calibration = _sample(dataset.calibration)
    _refuse_constant(calibration)
    _refuse_other_range(_sample(dataset.train), calibration)
    tests = {name: _sample(images) for name, images in dataset.tests.items()}
    notes = [_outside(name, images, calibration) for name, images in tests.items()]
    return tuple(note for note in notes if note is not None)


def _sample(images: Images) -> Tensor:
    """Pixels (up to 64, channels, height, width) from all over a set, float32 levels 0 to 255."""
    count = min(len(images), _SAMPLE)
    return images.pixels(torch.arange(count) * len(images) // count).float()


def _refuse_constant(calibration: Tensor) -> None:
    count = len(calibration)
    spread = calibration.amax((2, 3)) - calibration.amin((2, 3))
    apart = (calibration - calibration[0]).abs().max()
    if spread.max() <= _SAME_LEVELS:
        what = f"each of the {count} that were looked at is of one colour"
    elif count > 1 and apart <= _SAME_LEVELS:
        what = f"the {count} that were looked at are all the same"
    else:
        return
    raise InputError(
        f"calibration images: {what}, so no range for int8 can be learned from them; they are "
        "drawn from the training images: check those, or raise data.calibration_images"
    )


def _refuse_other_range(train: Tensor, calibration: Tensor) -> None:
    if min(len(train), len(calibration)) < _FEWEST:
        return
    figures = {
        "mean": (train.mean((2, 3)), calibration.mean((2, 3))),
        "standard deviation": (train.std((2, 3)), calibration.std((2, 3))),
    }
    for name, (trained, found) in figures.items():
        low = trained.quantile(_BEYOND, dim=0) - _GAP_LEVELS
        high = trained.quantile(1 - _BEYOND, dim=0) + _GAP_LEVELS
        apart = (found.amax(0) < low) | (found.amin(0) > high)
        for channel in apart.nonzero().flatten().tolist():
            one, other = found[:, channel], trained[:, channel]
            colour = _CHANNELS[len(apart)][channel]
            raise InputError(
                f"calibration images: the {name} of {colour} is {one.min():.0f} to "
                f"{one.max():.0f} of 255 in all {len(one)} that were looked at, and "
                f"{other.median():.0f} in the median image trained on; int8 ranges would be those "
                "of other images: calibrate on images like those trained on"
            )


def _outside(name: str, images: Tensor, calibration: Tensor) -> str | None:
    """What the user is to know of a test set; None where there is nothing."""
    low, high = calibration.amin((0, 2, 3)), calibration.amax((0, 2, 3))
    shape = (1, -1, 1, 1)
    outside = (images < low.view(shape)) | (images > high.view(shape))
    share = float(outside.float().mean())
    if share <= _OUTSIDE:
        return None
    ranges = [
        f"{channel} {low[c]:.0f} to {high[c]:.0f}" for c, channel in enumerate(_CHANNELS[len(low)])
    ]
    return (
        f"test set {name}: {share:.0%} of its pixel values are outside of what the calibration "
        f"images hold ({', '.join(ranges)} of 255), where int8 files clip; if phones will see "
        "such images, add some to the training images"
    )
