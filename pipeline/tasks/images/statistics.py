"""Mean and deviation of the pixels of known datasets, and of those that a recipe gives."""

from __future__ import annotations

from pipeline.recipe.data import DataConfig
from pipeline.tasks.images.dataset import Triple

_DIGITS_MEAN, _DIGITS_STD = 0.305, 0.376
# Per channel over the 50,000 training images, scale 0 to 1.
_CIFAR_MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def mean_and_std(config: DataConfig) -> tuple[Triple, Triple]:
    """What `load_dataset` normalises the images of a recipe by, per channel, scale 0 to 1."""
    if config.kind == "digits":
        return (_DIGITS_MEAN,) * 3, (_DIGITS_STD,) * 3
    if config.kind == "image_folder":
        return config.mean, config.std
    return _CIFAR_MEAN_STD[config.kind]
