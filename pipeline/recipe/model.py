"""What every family of networks lets a recipe ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails

from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.tree import NAMED
from pipeline.recipe.values import Channels, Part, Sides, WeightsFile


class ModelConfig(Part):
    """The network, for images of `input_size` pixels.

    Each family has a class of its own of this one, with the names of its networks and its own
    keys (`pipeline.recipe.models`).

    Attributes:
        name: of the network; a family narrows it to a Literal, or has its own `takes`.
        input_size: height and width of the images in pixels; one number for a square.
        channels: of the images.
        checkpoint: weights to start from.
        head: of the checkpoint. keep: as it is; replace: left out for a new one.
        weights: of a checkpoint that has both: averaged ones (ema), or those of the last step.
    """

    name: str
    input_size: Sides = 224
    channels: Channels = 3
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

    @model_validator(mode="after")
    def _taken(self) -> Self:
        multiple, shape = self.side_multiple, self.input_shape
        if shape.height % multiple or shape.width % multiple:
            why = ValueError(f"the sides of this network's images must be multiples of {multiple}")
            detail = InitErrorDetails(
                type="value_error",
                loc=("input_size",),
                input=self.input_size,
                ctx={"error": why},
            )
            raise ValidationError.from_exception_data("model", [detail])
        return self

    @property
    def input_shape(self) -> InputShape:
        """Of one image."""
        sides = self.input_size
        height, width = (sides, sides) if isinstance(sides, int) else sides
        return InputShape(channels=self.channels, height=height, width=width)

    @property
    def side_multiple(self) -> int:
        """What height and width must be multiples of; a family may ask for more than 1."""
        return 1

    @property
    def answer_stride(self) -> int:
        """By how much maps of answers are smaller than the image; 1 where nothing says it."""
        return 1

    @property
    def title(self) -> str:
        """The name as people read it, in reports and files, which go to other machines."""
        return self.name

    @property
    def decided(self) -> dict[str, Any]:
        """All keys as plain JSON, without where files lie: what they hold decides, not their place.

        Whoever makes a key of it adds the hashes of the checkpoint and of the user's own code.
        """
        kept = self.checkpoint
        checkpoint = kept if kept is None or kept.startswith(NAMED) else Path(kept).name
        return self.model_dump(mode="json") | {"name": self.title, "checkpoint": checkpoint}

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
