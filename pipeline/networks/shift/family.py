"""Residual networks of shifts, as a family of networks."""

from __future__ import annotations

from pipeline.networks.family import Family, Structure
from pipeline.networks.shift.network import CLASSIFIER, REPEATS, ShiftResNet
from pipeline.recipe.shift import ShiftModel


def build(config: ShiftModel, num_classes: int) -> ShiftResNet:
    """The network that a recipe describes, with random weights."""
    return ShiftResNet(
        num_classes,
        repeats=REPEATS[config.name],
        expansion=config.expansion,
        width_multiplier=config.width_multiplier,
        channels=config.channels,
    )


def _structure(model: ShiftResNet) -> Structure:
    """A shift has one weight a channel; sparsifying would move that channel out of the image."""
    shifts = [name for name, _ in model.named_modules() if name.endswith(".shift2")]
    return Structure(
        classifier=CLASSIFIER,
        stages=model.stage_names(),
        dense=("conv1", CLASSIFIER, *shifts),
    )


FAMILY = Family(build=build, structure=_structure)
