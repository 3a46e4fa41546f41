"""What a recipe asks a network to learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from pipeline.base.record import Share
from pipeline.recipe.known import Known, known_task
from pipeline.recipe.values import ClassWeights, Part, Stride

Link = Literal["softmax", "sigmoid"]
"""What makes probabilities of the numbers that a network gives."""
THRESHOLD, OVERLAP = 0.5, 0.45
"""Of a recipe that does not say them."""


class PixelLossConfig(Part):
    """What a training of pixels minimises: cross entropy, and the Dice loss beside it.

    Attributes:
        class_weights: how much the pixels of each class count in the cross entropy: null all
            alike, balanced as median frequency balancing of the training masks has it, or a list
            with a number for every class.
        dice: share of the loss that is the Dice loss, 1 - 2 |A and B| / (|A| + |B|), the mean
            over the classes that are there; the rest is cross entropy.
    """

    class_weights: ClassWeights | None = None
    dice: Share = 0.0


class TaskConfig(Part):
    """What is learned, and how it is judged.

    Attributes:
        kind: classification tells classes apart, one an image; binary is yes or no, by one logit;
            multilabel gives an image any number of labels, each by a logit of its own;
            detection finds objects, their boxes and classes; segmentation tells the class of every
            pixel.
        threshold: of multilabel: the probability above which a label is named; of detection: the
            score from which on a box is told of; null is 0.5. It decides nothing of the training.
        overlap: of detection: area in common of two boxes of a class, of the area of both, above
            which the one with the lower score goes; null is 0.45.
        stride: of segmentation: side of the square of pixels that the network gives an answer for;
            null is that of `model.stride`, or 1 of a network that has no such key. Coarser maps are
            scaled to the input's size, bilinear and in float, before they are compared with masks.
        loss: of segmentation; null is cross entropy alone.
    """

    kind: Annotated[str, AfterValidator(known_task)] = "classification"
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    stride: Stride | None = None
    loss: PixelLossConfig | None = None

    overlap: Annotated[float, Field(gt=0, lt=1)] | None = None

    @field_validator("threshold", "stride", "loss", "overlap")
    @classmethod
    def _of_this_task(cls, value: object, info: ValidationInfo) -> object:
        kind, key = info.data.get("kind"), info.field_name
        if value is None or kind is None or not isinstance(info.context, Known):
            return value
        having = [name for name, task in info.context.tasks.items() if key in task.options]
        if kind not in having:
            has = "has" if len(having) == 1 else "have"
            raise ValueError(f"only task.kind {' and '.join(having)} {has} one; remove it")
        return value
