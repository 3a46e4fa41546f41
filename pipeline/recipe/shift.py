"""What a recipe may ask of a residual network of shifts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.model import ModelConfig


class ShiftModel(ModelConfig):
    """The network, for images of `input_size` pixels; made for small ones.

    Attributes:
        name: of the network; the number counts its layers.
        input_size: height and width of the images in pixels; one number for a square.
        channels: of the images.
        checkpoint: weights to start from; a path. Without one the weights start random and are
            trained.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        expansion: channels that are shifted in a block, for each channel that it gives.
        width_multiplier: of the channels of every stage; they stay multiples of 8.
    """

    name: Literal["shiftresnet20", "shiftresnet56", "shiftresnet110"]
    expansion: Annotated[int, Field(ge=1, le=16)] = 3
    width_multiplier: Annotated[float, Field(gt=0, le=8)] = 1.0
