"""How a recipe trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.base.record import Share
from pipeline.recipe.values import Epochs, Kept, Part, TrainedSide


class AugmentConfig(Part):
    """The widest random change of a training image, in either direction.

    Attributes:
        crop: least and largest share of an image's area that is left of it: a random part of it,
            of sides up to 4:3 or 3:4, is resized to the input size. [0.08, 1] is usual for
            ImageNet.
        shift: share of the side; by whole pixels where neither rotate_deg nor scale is given, so
            that nothing is blurred.
        rotate_deg: degrees.
        scale: share of the size.
        flip: mirror half of the images left to right.
        policy: changes of shape and colour before all others. autoaugment: those found for
            ImageNet; autoaugment_cifar10: for CIFAR-10; randaugment: two drawn from all;
            trivialaugment: one drawn from all, at any strength.
    """

    crop: Annotated[tuple[Kept, Kept], Field(strict=False)] | None = None
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    flip: bool = False
    policy: (
        Literal["autoaugment", "autoaugment_cifar10", "randaugment", "trivialaugment"] | None
    ) = None

    @field_validator("crop")
    @classmethod
    def _least_first(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"the least share comes first: [{value[1]:g}, {value[0]:g}]")
        return value


class TrainConfig(Part):
    """One training by SGD with momentum; with 0 epochs there is none, and no more need be said.

    Attributes:
        epochs: passes over the training images.
        batch_size: images of one step, in all processes together.
        accumulate: parts that a process takes its images of a step in, one after the other, where
            memory is short. Batch statistics are those of a part.
        sync_bn: whether batch statistics are those of all processes' images, which gives the
            same training as in one process; else every process has its own.
        learning_rate: the highest; after the warm-up it falls to zero by half a cosine, or by
            `milestones`.
        learning_rate_batch: images of the step that `learning_rate` is meant for: it grows and
            shrinks with `batch_size`. 256 is usual, with 0.1; null takes it as it is.
        momentum: of SGD, Nesterov's; 0 leaves it out.
        weight_decay: of weights; biases and batch normalisations have none.
        warmup_epochs: epochs in which the learning rate rises to that.
        milestones: epochs after which the learning rate falls to a tenth. Empty: half a cosine.
        label_smoothing: share of the target that is spread over all classes.
        mixup: of the Beta distribution that two images are added by; 0 leaves it out.
        cutmix: of the Beta distribution that gives the part of an image that another one gets; 0
            leaves it out. With mixup, every batch takes one of the two.
        dropblock: share of the last two stages' feature maps that is dropped in squares.
        dropout: share of the features that is dropped before the classifier.
        ema: what is left of every weight's average after a step; at the end the averages are the
            weights. 0.999 is usual; null takes the last weights.
        clip_norm: the largest norm of the gradient; null does not limit it.
        precision: of the convolutions' arithmetic. auto: bfloat16 on GPUs and on CPUs that
            multiply it in hardware (AMX, AVX-512 BF16), else float32; quantization-aware
            training, whose numbers are to be those of the int8 grid, keeps to float32 unless
            bfloat16 is asked for. Weights, batch statistics and every accuracy are float32 always.
        sizes: shorter sides of the training images in pixels, one after the other, each for an
            equal share of the steps; the longer side keeps the proportion. Small images
            first cost a fraction. Empty: the model's input size throughout.
        shrink: how images come to these sides: resize the whole, or crop a random part.
        augment: random changes of the images.
    """

    epochs: Annotated[int, Field(ge=0, le=100_000)]
    batch_size: Annotated[int, Field(ge=2, le=65_536)]  # batch norm cannot train on one image
    accumulate: Annotated[int, Field(ge=1, le=65_536)] = 1
    sync_bn: bool = True
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_epochs: Annotated[int, Field(ge=0, le=100_000)] = 0
    milestones: Annotated[tuple[Epochs, ...], Field(strict=False)] = ()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    dropblock: Annotated[float, Field(ge=0, lt=1)] = 0.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    sizes: Annotated[tuple[TrainedSide, ...], Field(strict=False)] = ()
    shrink: Literal["resize", "crop"] = "resize"
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="before")
    @classmethod
    def _none(cls, given: Any) -> Any:
        """What a training must be told is never read where there is none."""
        if isinstance(given, dict) and type(given.get("epochs")) is int and given["epochs"] == 0:
            return {"batch_size": 2, "learning_rate": 1.0} | given
        return given

    @field_validator("accumulate")
    @classmethod
    def _parts_of_two(cls, value: int, info: ValidationInfo) -> int:
        images = info.data.get("batch_size")
        if images is not None and 2 * value > images:
            raise ValueError(f"a part needs two images, and batch_size is {images}")
        return value


class DistillConfig(Part):
    """Learning from the float network's answers beside the labels (knowledge distillation).

    Attributes:
        temperature: softens the answers of both networks.
        weight: share of the loss that comes from the float network's answers.
        features: weight of the difference between the attention maps at the ends of the four
            stages, added to the loss; 0 leaves it out. The difference is small, 0.001 to 0.03:
            100 to 1000 are usual.
    """

    temperature: Annotated[float, Field(gt=0, le=100)] = 4.0
    weight: Share = 0.5
    features: Annotated[float, Field(ge=0)] = 0.0


class SaveConfig(Part):
    """How often a training saves its state, to go on from when it was stopped.

    Attributes:
        seconds: between two states; more where writing one takes over a fiftieth of that.
        steps: between two states at most.
    """

    seconds: Annotated[float, Field(gt=0)] = 60.0
    steps: Annotated[int, Field(ge=1)] | None = None
