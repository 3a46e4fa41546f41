"""What a recipe asks a network to learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from pipeline.recipe.known import Known, known_task
from pipeline.recipe.values import Part

Link = Literal["softmax", "sigmoid"]
"""What makes probabilities of the numbers that a network gives."""
THRESHOLD = 0.5
"""Of a recipe that does not say it."""


class TaskConfig(Part):
    """What is learned, and how it is judged.

    Attributes:
        kind: classification tells classes apart, one an image; binary is yes or no, by one logit;
            multilabel gives an image any number of labels, each by a logit of its own.
        threshold: of multilabel: the probability above which a label is named; null is 0.5. It
            decides nothing of the training.
    """

    kind: Annotated[str, AfterValidator(known_task)] = "classification"
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    @field_validator("threshold")
    @classmethod
    def _of_this_task(cls, threshold: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("kind")
        if threshold is None or kind is None or not isinstance(info.context, Known):
            return threshold
        having = [name for name, task in info.context.tasks.items() if "threshold" in task.options]
        if kind not in having:
            raise ValueError(f"only task.kind {' and '.join(having)} has one; remove it")
        return threshold
