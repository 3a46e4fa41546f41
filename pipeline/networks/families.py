"""The families of networks, by name."""

from __future__ import annotations

from pipeline.networks.family import AnyFamily
from pipeline.networks.model_info import ModelInfo
from pipeline.networks.resnest.family import FAMILY as RESNEST
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.recipe import Recipe

FAMILIES: dict[str, AnyFamily] = {
    "resnest": RESNEST,
}
"""What a family does; `pipeline.recipe.models.MODELS` says what a recipe may ask of it."""


def family_of(config: ModelConfig) -> AnyFamily:
    """The family of a recipe's network."""
    return next(family for family in FAMILIES.values() if isinstance(config, family.options))


def model_info(recipe: Recipe, num_classes: int, params: int, macs: int) -> ModelInfo:
    """A recipe's float network, as the report names it."""
    side = recipe.model.input_size
    return ModelInfo(
        name=recipe.model.name,
        block=family_of(recipe.model).block(recipe.model),
        input_shape=(1, 3, side, side),
        num_classes=num_classes,
        params=params,
        macs=macs,
    )
