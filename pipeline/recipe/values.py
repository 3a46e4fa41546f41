"""Types of single values of a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from pipeline.recipe.input_shape import LEAST, MOST


def name_fault(name: str) -> str | None:
    """What a recipe's or a test set's name must be; None where it is that."""
    return None if re.match(_NAME_FORM, name) and len(name) <= 100 else f"must be {NAME}"


def _to_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("must be a path")
    return Path(value)


def whole(value: object) -> object:
    """Itself where it is a whole number; otherwise text, which no Literal of numbers takes.

    Literal[1] alone would take True and 1.0, which equal 1.
    """
    return value if type(value) is int else repr(value)


_TIME = r"^(?:[1-9][0-9]{0,5}(?:\.[0-9]{1,6})?|0\.[0-9]{0,5}[1-9]) ?ms$"
_LATENCY = "a share of the unpruned file's time above 0 and up to 1, or a time such as 30 ms"


def _to_latency(value: object) -> object:
    share = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    if share or (isinstance(value, str) and re.match(_TIME, value)):
        return value
    raise ValueError(f"must be {_LATENCY}")


_SIDES = f"a whole number {LEAST} to {MOST}, or two of them as [height, width]"


def _to_sides(value: object) -> object:
    """One number, or a pair of different ones."""
    pair = value if isinstance(value, list | tuple) else [value, value]
    if len(pair) != 2 or not all(type(side) is int and LEAST <= side <= MOST for side in pair):
        raise ValueError(f"must be {_SIDES}")
    return pair[0] if pair[0] == pair[1] else tuple(pair)


BALANCED = "balanced"
_CLASS_WEIGHTS = f"{BALANCED}, or a list with a number of 0 or more for every class"


def _to_class_weights(value: object) -> object:
    if value == BALANCED:
        return value
    numbers = value if isinstance(value, list | tuple) else ()
    if numbers and all(type(one) in (int, float) and one >= 0 for one in numbers) and any(numbers):
        return tuple(map(float, numbers))
    raise ValueError(f"must be {_CLASS_WEIGHTS}")


NAME = "up to 100 of a-z, 0-9, '.', '_', '-', first a letter or digit, last no dot, no '..'"
_NAME_FORM = r"^[a-z0-9](?:\.?[a-z0-9_-])*$"
PathOnDisk = Annotated[Path, BeforeValidator(_to_path)]
Splits = Annotated[Literal[1, 2, 4], BeforeValidator(whole)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Kept = Annotated[float, Field(gt=0, le=1)]
# One schema for both, so that errors and editors can say it in a line.
LatencyTarget = Annotated[
    float | str,
    BeforeValidator(_to_latency),
    WithJsonSchema(
        {
            "type": ["number", "string"],
            "exclusiveMinimum": 0,
            "maximum": 1,
            "pattern": _TIME,
            "description": _LATENCY,
        }
    ),
]
Sides = Annotated[
    int | tuple[int, int],
    BeforeValidator(_to_sides),
    WithJsonSchema(
        {
            "type": ["integer", "array"],
            "minimum": LEAST,
            "maximum": MOST,
            "items": {"type": "integer", "minimum": LEAST, "maximum": MOST},
            "minItems": 2,
            "maxItems": 2,
            "description": _SIDES,
        }
    ),
]
ClassWeights = Annotated[
    str | tuple[float, ...],
    BeforeValidator(_to_class_weights),
    WithJsonSchema(
        {
            "type": ["string", "array"],
            "pattern": f"^{BALANCED}$",
            "items": {"type": "number", "minimum": 0},
            "minItems": 1,
            "description": _CLASS_WEIGHTS,
        }
    ),
]
Stride = Annotated[Literal[1, 2, 4, 8, 16, 32], BeforeValidator(whole)]
Pattern = Annotated[str, Field(min_length=1, max_length=300)]
Channels = Annotated[Literal[1, 3], BeforeValidator(whole)]
WeightsFile = Annotated[
    str,
    Field(
        pattern=r"^(?:timm:[A-Za-z0-9][A-Za-z0-9_.-]*|torchvision:[A-Za-z0-9_]+\.[A-Z][A-Z0-9_]*"
        r"|[^\x00]+(?:\.(?:safetensors|pt|pth|bin|ckpt|tar)|/))$",
        description="a path that ends in .safetensors, .pt, .pth, .bin, .ckpt or .tar, a folder "
        "of the Hugging Face Hub with / at its end, timm:NAME, torchvision:WEIGHTS",
    ),
]
Width = Annotated[int, Field(ge=1, le=1024)]
TrainedSide = Annotated[int, Field(ge=LEAST, le=MOST)]
Side = Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
Deviation = Annotated[float, Field(gt=0)]
Words = Annotated[str, Field(min_length=1, max_length=4000)]
FileName = Annotated[
    str,
    # A run writes into a folder of this name: no separators, no "..", no case to confuse.
    Field(pattern=_NAME_FORM, max_length=100, description=NAME),
]


class Part(BaseModel):
    """A part of a recipe: cannot be changed, refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )
