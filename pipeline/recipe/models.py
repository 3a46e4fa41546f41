"""What a recipe may ask of the network, by family: the keys of `model`, without torch.

`pipeline.networks.families.FAMILIES` holds the same families, with what they do. They stand in two
places since a recipe is read without torch, and by what stands below every network.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Union

from pydantic import BeforeValidator, SerializeAsAny

from pipeline.recipe.model import ModelConfig
from pipeline.recipe.resnest import ResNeStModel

MODELS: dict[str, type[ModelConfig]] = {
    "resnest": ResNeStModel,
}
"""The keys of `model`, by the name of the family."""


def known_names() -> tuple[str, ...]:
    """Everything that `model.name` may be."""
    return tuple(name for kind in MODELS.values() for name in kind.names())


def kind_of(name: object) -> type[ModelConfig]:
    """The keys of the family that has a network of this name.

    Where none has, those of the family with the nearest name: what else is wrong can be said, too.
    """
    for kind in MODELS.values():
        if kind.takes(name):
            return kind
    near = difflib.get_close_matches(str(name), known_names(), n=1)
    nearest = [kind for kind in MODELS.values() if set(near) & set(kind.names())]
    return next(iter([*nearest, *MODELS.values()]))


def of_family(given: object) -> object:
    """The `model` of a recipe, checked by the keys of the family that it names."""
    if not isinstance(given, dict):
        return given
    return kind_of(given.get("name")).model_validate(given)


AnyModel = Annotated[
    SerializeAsAny[ModelConfig],
    BeforeValidator(of_family, json_schema_input_type=Union[tuple(MODELS.values())]),  # noqa: UP007
]
"""The type of a recipe's `model`."""
