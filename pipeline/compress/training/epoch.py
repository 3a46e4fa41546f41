"""One epoch of a training, as the report keeps it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.base.record import Positive, Record, Share


class Epoch(Record):
    """One epoch of a training.

    Attributes:
        epoch: from 1 on.
        loss: mean over the epoch.
        accuracy: on the training images, while they were trained on.
        learning_rate: of the last step.
    """

    epoch: Positive
    loss: float
    accuracy: Share
    learning_rate: Annotated[float, Field(ge=0)]
