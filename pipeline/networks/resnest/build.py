"""ResNeSts by the name that a recipe gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TypeVar

import torch

from pipeline.base.errors import InputError
from pipeline.networks.resnest.network import NAMED, ResNeSt, ResNeStConfig
from pipeline.recipe.resnest import ResNeStModel

Net = TypeVar("Net", bound=ResNeSt)
_MOST_BLOCKS, _MOST_PARAMS = 500, 500_000_000
"""Five times those of ResNeSt-269. A recipe can ask for a thousand times as many, and building
them would take all memory before anything could be said."""


def shape_of(config: ResNeStModel, num_classes: int) -> ResNeStConfig:
    """The named network's shape with what a recipe changes in it."""
    allowed = {field.name for field in fields(ResNeStConfig)}
    given = {
        name: value
        for name, value in config.model_dump().items()
        if name in allowed and value is not None
    }
    return replace(NAMED[config.name], num_classes=num_classes, **given)


def build(config: ResNeStModel, num_classes: int) -> ResNeSt:
    """Build the network a recipe describes, with random weights, for `num_classes` classes.

    Raises:
        InputError: as `built`.
    """
    return built(config, num_classes, ResNeSt)


def built(config: ResNeStModel, num_classes: int, kind: Callable[[ResNeStConfig], Net]) -> Net:
    """Build one kind of the network a recipe describes, with random weights.

    Raises:
        InputError: if the overrides ask for groups that do not divide the channels, or for more
            blocks or parameters than any machine here trains.
    """
    shape = shape_of(config, num_classes)
    if (blocks := sum(shape.layers)) > _MOST_BLOCKS:
        raise InputError(
            f"model.layers: got {list(shape.layers)}, {blocks} blocks; at most {_MOST_BLOCKS} are "
            "built; lower the numbers"
        )
    try:
        with torch.device("meta"):
            params = sum(weight.numel() for weight in kind(shape).parameters())
        if params > _MOST_PARAMS:
            raise InputError(
                f"model: {params / 1e6:.0f} M parameters at base_width {shape.base_width}, "
                f"stem_width {shape.stem_width}, width_multiplier {shape.width_multiplier:g}; at "
                f"most {_MOST_PARAMS / 1e6:.0f} M are built; lower one of these, or model.layers"
            )
        return kind(shape)
    except ValueError as error:
        raise InputError(
            f"model: radix {shape.radix} x cardinality {shape.cardinality} groups do not divide "
            f"the channels at base_width {shape.base_width}, width_multiplier "
            f"{shape.width_multiplier:g} ({error}); lower radix or cardinality, or widen the "
            f"network until every width is a multiple of {shape.radix * shape.cardinality}"
        ) from error
