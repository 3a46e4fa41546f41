"""Mean and deviation of the pixels of known datasets, and of those that a recipe gives."""

from __future__ import annotations

from pipeline.recipe.data import DataConfig, PhotoData
from pipeline.tasks.images.dataset import Channels

_DIGITS_MEAN, _DIGITS_STD = 0.305, 0.376
_SCENES_MEAN, _SCENES_STD = 0.201, 0.175
# Per channel over the 50,000 training images, scale 0 to 1.
_CIFAR_MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
_LUMA = (0.299, 0.587, 0.114)


def mean_and_std(config: DataConfig, channels: int) -> tuple[Channels, Channels]:
    """What `load_dataset` normalises the images of a recipe by, per channel, scale 0 to 1.

    Grey images have the luma of three numbers: that is their mean, and their deviation where
    colours rise and fall together.
    """
    if config.kind == "digits":
        return (_DIGITS_MEAN,) * channels, (_DIGITS_STD,) * channels
    if config.kind == "digit_scenes":
        return (_SCENES_MEAN,) * channels, (_SCENES_STD,) * channels
    if isinstance(config, PhotoData):
        mean, std = config.mean, config.std
    else:
        mean, std = _CIFAR_MEAN_STD[config.kind]
    return _of(mean, channels), _of(std, channels)


def _of(values: Channels, channels: int) -> Channels:
    if len(values) == channels:
        return values
    return (round(sum(w * v for w, v in zip(_LUMA, values, strict=True)), 4),)
