"""What a recipe may ask of the network: the keys of `model`, by the family that `name` is of."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Union

from pydantic import BeforeValidator, SerializeAsAny, ValidationInfo

from pipeline.recipe.fastestdet import FastestDetModel
from pipeline.recipe.known import Known
from pipeline.recipe.libraries import PythonModel, TimmModel, TorchvisionModel
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.resnest import ResNeStModel
from pipeline.recipe.segmenter import SegmenterModel
from pipeline.recipe.shift import ShiftModel
from pipeline.recipe.shufflenet import ShuffleNetModel

Kind = type[ModelConfig]
ALONE: tuple[Kind, ...] = (
    *(ResNeStModel, ShuffleNetModel, ShiftModel, FastestDetModel, SegmenterModel),
    *(TorchvisionModel, TimmModel, PythonModel),
)
"""Where a recipe is read without the tables that lie above, as tools that only read it may."""


def kinds(known: Known | None) -> tuple[Kind, ...]:
    """The keys of `model`, of every family that is known."""
    return ALONE if known is None else tuple(one.options for one in known.families.values())


def known_names(among: Sequence[Kind]) -> tuple[str, ...]:
    """Everything that `model.name` may be."""
    return tuple(name for kind in among for name in kind.names())


def kind_of(name: object, among: Sequence[Kind]) -> Kind:
    """The keys of the family that has a network of this name.

    Where none has, those of the family with the nearest name: what else is wrong can be said, too.
    """
    for kind in among:
        if kind.takes(name):
            return kind
    near = difflib.get_close_matches(str(name), known_names(among), n=1)
    nearest = [kind for kind in among if set(near) & set(kind.names())]
    return next(iter([*nearest, *among]))


def of_family(given: object, info: ValidationInfo) -> object:
    """The `model` of a recipe, checked by the keys of the family that it names."""
    if not isinstance(given, dict):
        return given
    known = info.context if isinstance(info.context, Known) else None
    return kind_of(given.get("name"), kinds(known)).model_validate(given)


def with_models(schema: dict[str, Any], among: Sequence[Kind]) -> dict[str, Any]:
    """The JSON Schema of a recipe whose `model` has the keys of one of these families."""
    refs = []
    for kind in among:
        keys = kind.model_json_schema()
        schema["$defs"] |= keys.pop("$defs", {}) | {kind.__name__: keys}
        refs.append({"$ref": f"#/$defs/{kind.__name__}"})
    schema["properties"]["model"] = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return schema


AnyModel = Annotated[
    SerializeAsAny[ModelConfig],
    BeforeValidator(of_family, json_schema_input_type=Union[ALONE]),  # noqa: UP007
]
"""The type of a recipe's `model`."""
