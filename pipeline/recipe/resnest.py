"""What a recipe may ask of a ResNeSt."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.model import ModelConfig
from pipeline.recipe.values import Depth, Splits, Width


class ResNeStModel(ModelConfig):
    """The network, for images of `input_size` pixels.

    The fields from `block` on change what `name` gives.

    Attributes:
        name: of the network.
        input_size: height and width of the images in pixels, multiples of 32; of 8 with a small
            stem. One number stands for a square.
        channels: of the images.
        checkpoint: weights to start from, with the names of the official ResNeSt, of timm or of
            PocketNest; a path, or `timm:` and the name of one of timm's models, which is fetched
            from the Hugging Face Hub once. Without one the weights start random and are trained.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of the checkpoint. ema: averaged over the training's steps where the file has such
            weights, else those of the last step; raw: those of the last step.
        block: kind of the blocks.
        layers: blocks of each of the four stages.
        radix: splits of every block, between which its attention chooses.
        cardinality: groups of channels of every block.
        base_width: channels of one group where a stage has 64 planes.
        stem: before the stages. deep: three convolutions and a pool, to a quarter of the side;
            small: one convolution at the whole side, for small images.
        stem_width: channels of a deep stem's first two convolutions; its third, or the one of a
            small stem, has twice as many.
        avd: pools in every block that halves the resolution (average downsampling), in place of
            a convolution that skips pixels.
        avd_first: whether that pool stands before the block's 3 x 3 convolution.
        width_multiplier: of the channels of every stage; they stay multiples of 8.
    """

    name: Literal[
        "resnest14",
        "resnest26",
        "resnest50",
        "resnest101",
        "resnest200",
        "resnest269",
        "resnest50_fast_1s1x64d",
        "resnest50_fast_2s1x64d",
        "resnest50_fast_4s1x64d",
        "resnest50_fast_1s2x40d",
        "resnest50_fast_2s2x40d",
        "resnest50_fast_4s2x40d",
        "resnest50_fast_1s4x24d",
        "resnest50_basic",
    ]
    block: Literal["bottleneck", "basic"] | None = None
    layers: Annotated[tuple[Depth, Depth, Depth, Depth], Field(strict=False)] | None = None
    radix: Splits | None = None
    cardinality: Splits | None = None
    base_width: Width | None = None
    stem: Literal["deep", "small"] | None = None
    stem_width: Width | None = None
    avd: bool | None = None
    avd_first: bool | None = None
    width_multiplier: Annotated[float, Field(gt=0, le=2)] = 1.0

    @property
    def side_multiple(self) -> int:
        """The stem and the halvings after it.

        A shortcut's pool would otherwise have a window of fewer elements at the edge, which no
        convolution has.
        """
        return 8 if self.stem == "small" else 32
