"""How images were prepared for the weights that torchvision and timm publish."""

from __future__ import annotations

from typing import Any

from pipeline.networks.family import Preset
from pipeline.networks.hub import torchvision_weights
from pipeline.recipe.libraries import TIMM, TORCHVISION, TimmModel, TorchvisionModel

_LEAST_SHARE = 0.5
"""Of `data.crop_pct`."""
_INTERPOLATIONS = ("bilinear", "bicubic")


def of_torchvision(config: TorchvisionModel) -> Preset | None:
    """By the transforms of the weights that a recipe names, else of those torchvision prefers.

    Raises:
        InputError: torchvision has no such weights.
    """
    from torchvision import models

    name = config.name.removeprefix(TORCHVISION)
    if config.checkpoint is not None and config.checkpoint.startswith(TORCHVISION):
        weights = torchvision_weights(config.checkpoint)
    elif name in models.list_models(module=models):
        weights = models.get_model_weights(name).DEFAULT
    else:
        return None  # building it says so
    made = weights.transforms()
    side = made.crop_size[0]
    return Preset(
        source=f"{TORCHVISION}{weights}",
        input_size=side,
        crop_pct=_share(side / made.resize_size[0]),
        interpolation=_known(made.interpolation.value),
        mean=_three(made.mean),
        std=_three(made.std),
    )


def of_timm(config: TimmModel) -> Preset | None:
    """By timm's configuration of the weights that a recipe names, else of the network's own."""
    import timm

    name = config.name
    if config.checkpoint is not None and config.checkpoint.startswith(TIMM):
        name = config.checkpoint
    try:
        found = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    except RuntimeError:  # weights that this timm does not know
        return None
    if found is None:
        return None
    _, height, width = found.input_size
    return Preset(
        source=name,
        input_size=height if height == width else (height, width),
        crop_pct=_share(found.crop_pct),
        interpolation=_known(found.interpolation),
        mean=_three(found.mean),
        std=_three(found.std),
    )


def _share(value: float) -> float:
    """At most 1, and as few digits as bring back the same pixels."""
    return min(1.0, max(_LEAST_SHARE, round(value, 6)))


def _known(interpolation: str) -> Any:
    """None where it is neither; training drew one at random."""
    return interpolation if interpolation in _INTERPOLATIONS else None


def _three(values: Any) -> tuple[float, float, float] | None:
    """None where there are not three, as of networks that read other images than coloured ones."""
    found = tuple(float(value) for value in values)
    return found if len(found) == 3 else None
