"""What a recipe may ask of a ShuffleNet of the first version."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from pipeline.recipe.model import ModelConfig
from pipeline.recipe.values import whole

Groups = Annotated[Literal[1, 2, 3, 4, 8], BeforeValidator(whole)]


class ShuffleNetModel(ModelConfig):
    """The network, for images of `input_size` pixels.

    Attributes:
        name: of the network.
        input_size: height and width of the images in pixels; one number for a square.
        channels: of the images.
        checkpoint: weights to start from, with the names of the authors' own code; a path. Without
            one the weights start random and are trained.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        groups: of the 1 x 1 convolutions; more of them give wider stages for the same work.
        stem: before the stages. standard: a convolution and a pool, to a quarter of the side;
            small: one convolution at the whole side, for small images.
        width_multiplier: of the channels of every stage; they stay multiples of 4 x `groups`.
    """

    name: Literal["shufflenet_v1"]
    groups: Groups = 3
    stem: Literal["standard", "small"] = "standard"
    width_multiplier: Annotated[float, Field(gt=0, le=4)] = 1.0
