"""What every family of networks lets a recipe ask for."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from pipeline.recipe.values import Part, WeightsFile


class ModelConfig(Part):
    """The network, for square inputs of `input_size` pixels a side.

    Each family has a class of its own of this one, with the names of its networks and its own
    keys (`pipeline.recipe.models`).

    Attributes:
        name: of the network; a family narrows it to a Literal, or has its own `takes`.
        input_size: side of the images in pixels; a family narrows it to what its strides divide.
        checkpoint: weights to start from.
        head: of the checkpoint. keep: as it is; replace: left out for a new one.
        weights: of a checkpoint that has both: averaged ones (ema), or those of the last step.
    """

    name: str
    input_size: Annotated[int, Field(ge=1, le=1024)] = 224
    checkpoint: WeightsFile | None = None
    head: Literal["keep", "replace"] = "keep"
    weights: Literal["ema", "raw"] = "ema"

    @field_validator("head")
    @classmethod
    def _of_a_checkpoint(cls, head: str, info: ValidationInfo) -> str:
        if head == "replace" and info.data.get("checkpoint", "") is None:
            raise ValueError("replace needs model.checkpoint: without one there is no head")
        return head

    @field_validator("weights")
    @classmethod
    def _in_a_checkpoint(cls, weights: str, info: ValidationInfo) -> str:
        if weights == "raw" and info.data.get("checkpoint", "") is None:
            raise ValueError("raw needs model.checkpoint: without one there are no weights")
        return weights

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """What `model.name` may be: the family's names, or forms of them."""
        return get_args(cls.model_fields["name"].annotation)

    @classmethod
    def takes(cls, name: object) -> bool:
        """Whether `name` is of this family."""
        return name in cls.names()

    @classmethod
    def shape_keys(cls) -> tuple[str, ...]:
        """The keys that decide what the network is, beside the side of its images."""
        return tuple(key for key in cls.model_fields if key not in _NO_SHAPE)


_NO_SHAPE = ("input_size", "checkpoint", "head", "weights")
