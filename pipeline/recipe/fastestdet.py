"""What a recipe may ask of FastestDet."""

from __future__ import annotations

from typing import Literal

from pipeline.recipe.model import ModelConfig
from pipeline.recipe.values import Sides


class FastestDetModel(ModelConfig):
    """The network, for images of `input_size` pixels.

    Attributes:
        name: of the network.
        input_size: height and width of the images in pixels, multiples of 32; one number for a
            square. 352 is that of the published weights.
        channels: of the images.
        checkpoint: weights to start from, with the names of the authors' own code; a path. Without
            one the weights start random and are trained.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: the layers that tell classes apart are left out for new ones, and `train`
            trains the network on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        colours: order of the colours that the checkpoint reads: bgr as the published weights, whose
            first layer is turned when it is read, or rgb as those that were trained here.
    """

    name: Literal["fastestdet"]
    input_size: Sides = 352
    colours: Literal["bgr", "rgb"] = "bgr"

    @property
    def side_multiple(self) -> int:
        """What height and width must be multiples of: the last stage is a 32nd of them."""
        return 32

    @classmethod
    def shape_keys(cls) -> tuple[str, ...]:
        """Without the order of colours, which a checkpoint has and the network has not."""
        return tuple(key for key in super().shape_keys() if key != "colours")
