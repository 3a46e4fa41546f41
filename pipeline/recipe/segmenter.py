"""What a recipe may ask of a network that gives a class to every place of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.recipe.libraries import Arguments
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.tree import NAMED
from pipeline.recipe.values import WeightsFile, Width, whole

Stride = Annotated[Literal[1, 2, 4, 8, 16, 32], BeforeValidator(whole)]
_DILATED = ("deeplabv3", "deeplabv3plus")
_SMALLEST, _DILATED_STRIDE = 32, 16
_CHANNELS = {"unet": 64, "fpn": 128, "deeplabv3": 128, "deeplabv3plus": 128}
_FINEST = 4
"""The stride of a backbone's first image."""


class SegmenterModel(ModelConfig):
    """The network, for images of `input_size` pixels.

    Attributes:
        name: of the network.
        input_size: height and width of the images in pixels, multiples of the stride of the
            backbone's smallest image; one number for a square.
        channels: of the images.
        checkpoint: weights of the whole network to start from; a path. Without one the weights
            start random, or the backbone's from `backbone_checkpoint`, and are trained.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
        weights: of a checkpoint that holds both averaged weights (an EMA, SWA) and those of the
            last step: ema takes the averages where there are any, raw the others.
        backbone: network whose images are decoded: the name of a ResNeSt, `timm:` and a name, or
            one of torchvision's, with or without `torchvision:`.
        backbone_arguments: passed on to what builds it: keys of a ResNeSt's `model`, or arguments
            of the library.
        backbone_checkpoint: weights of a trained classifier that the backbone starts from; what
            is not of the backbone is left out. As `model.checkpoint` of such a network.
        output_stride: by how much the backbone's smallest image is smaller than the network's; 8
            and 16 spread the kernels of later stages instead. null is 16 for DeepLab, and 32 for
            the others, which have no other.
        decoder_channels: of the decoder. null is 64 for unet, where they are those at the end and
            twice as many before each enlarging, and 128 for the others.
        stride: by how much the logits' height and width are smaller than the image's. null is 4,
            for deeplabv3 that of its smallest image. What is finer than what the decoder gives is
            enlarged bilinearly.
    """

    name: Literal["unet", "fpn", "deeplabv3", "deeplabv3plus"]
    backbone: Annotated[str, Field(pattern=r"^(?:[a-z]+:)?[A-Za-z0-9][A-Za-z0-9_.-]*$")] = (
        "resnest26"
    )
    backbone_arguments: Arguments = Field(default_factory=dict)
    backbone_checkpoint: WeightsFile | None = None
    output_stride: Annotated[Literal[8, 16, 32], BeforeValidator(whole)] | None = None
    decoder_channels: Width | None = None
    stride: Stride | None = None

    @field_validator("output_stride")
    @classmethod
    def _of_dilated(cls, stride: int | None, info: Any) -> int | None:
        name = info.data.get("name")
        if stride not in (None, _SMALLEST) and name is not None and name not in _DILATED:
            raise ValueError(f"{name} has stride {_SMALLEST} alone; remove it")
        return stride

    @model_validator(mode="after")
    def _strides_fit(self) -> Self:
        if self.stride is not None and self.stride > self.smallest_stride:
            raise ValueError(
                f"stride: got {self.stride}; the smallest image of the backbone is at "
                f"{self.smallest_stride}; lower it to that, or raise output_stride"
            )
        if self.backbone_checkpoint is not None and self.checkpoint is not None:
            raise ValueError(
                "backbone_checkpoint: model.checkpoint has the backbone's weights, too; remove one"
            )
        return self

    @property
    def smallest_stride(self) -> int:
        """Of the backbone's last image."""
        wanted = _DILATED_STRIDE if self.name in _DILATED else _SMALLEST
        return self.output_stride or wanted

    @property
    def answer_stride(self) -> int:
        """Of the logits."""
        if self.stride is not None:
            return self.stride
        return self.smallest_stride if self.name == "deeplabv3" else _FINEST

    @property
    def decoded_stride(self) -> int:
        """Of what the decoder gives; what is finer is enlarged."""
        if self.name == "deeplabv3":
            return self.smallest_stride
        return max(self.answer_stride, _FINEST)

    @property
    def width(self) -> int:
        """Channels of the decoder."""
        return self.decoder_channels or _CHANNELS[self.name]

    @property
    def side_multiple(self) -> int:
        """What is halved so often has to be even as often: images of two strides meet."""
        return self.smallest_stride

    @property
    def decided(self) -> dict[str, Any]:
        """As of every network; nor does the place of the backbone's weights decide."""
        kept = self.backbone_checkpoint
        name = kept if kept is None or kept.startswith(NAMED) else Path(kept).name
        return super().decided | {"backbone_checkpoint": name}

    @classmethod
    def shape_keys(cls) -> tuple[str, ...]:
        """As of every network; nor does what the backbone starts from."""
        return tuple(key for key in super().shape_keys() if key != "backbone_checkpoint")
