"""What the report says of a network."""

from __future__ import annotations

from pipeline.networks.model_info import ModelInfo
from pipeline.recipe.recipe import Recipe


def model_info(recipe: Recipe, num_classes: int, params: int, macs: int) -> ModelInfo:
    """A recipe's float network."""
    side = recipe.model.input_size
    basic = recipe.model.block == "basic" or (
        recipe.model.block is None and recipe.model.name.endswith("_basic")
    )
    return ModelInfo(
        name=recipe.model.name,
        block="basic" if basic else "bottleneck",
        input_shape=(1, 3, side, side),
        num_classes=num_classes,
        params=params,
        macs=macs,
    )
