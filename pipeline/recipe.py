"""The recipe: what one run does for one target device, and every limit on it.

    recipes = load_recipes([Path("recipes/resnest50/linux-arm-onnxruntime-int8.yaml")])

The types here are the only place that says what a recipe may hold: the error texts, the JSON
Schema for editors and the defaults all come from them. Reading YAML, `extends` and `--set` is
in pipeline.recipe_loading, the wording of errors in pipeline.recipe_problems. Other modules
need only this one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.errors import InputError
from pipeline.recipe_loading import read_overrides, read_tree, write_yaml
from pipeline.recipe_problems import explain
from pipeline.recipe_tree import Place, Value, absolute_paths, merge, plain

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PRUNE_TARGETS = ("macs", "params", "size_mb", "latency")

_PATHS = ("model.checkpoint", "data.path", "data.train", "data.test.*")


def name_fault(name: str) -> str | None:
    """What a recipe's or a test set's name must be; None where it is that."""
    return None if re.match(_NAME_FORM, name) and len(name) <= 100 else f"must be {_NAME}"


def _to_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("must be a path")
    return Path(value)


def _whole(value: object) -> object:
    # Literal[1] would take True and 1.0, which equal 1.
    return value if type(value) is int else repr(value)


_TIME = r"^(?:[1-9][0-9]{0,5}(?:\.[0-9]{1,6})?|0\.[0-9]{0,5}[1-9]) ?ms$"
_LATENCY = "a share of the unpruned file's time above 0 and up to 1, or a time such as 30 ms"


def _to_latency(value: object) -> object:
    share = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
    if share or (isinstance(value, str) and re.match(_TIME, value)):
        return value
    raise ValueError(f"must be {_LATENCY}")


_NAME = "up to 100 of a-z, 0-9, '.', '_', '-', first a letter or digit, last no dot, no '..'"
_NAME_FORM = r"^[a-z0-9](?:\.?[a-z0-9_-])*$"
PathOnDisk = Annotated[Path, BeforeValidator(_to_path)]
Splits = Annotated[Literal[1, 2, 4], BeforeValidator(_whole)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Kept = Annotated[float, Field(gt=0, le=1)]
# One schema for both, so that errors and editors can say it in a line.
LatencyTarget = Annotated[
    float | str,
    BeforeValidator(_to_latency),
    WithJsonSchema(
        {
            "type": ["number", "string"],
            "exclusiveMinimum": 0,
            "maximum": 1,
            "pattern": _TIME,
            "description": _LATENCY,
        }
    ),
]
WeightsFile = Annotated[
    str,
    Field(
        pattern=r"^(?:timm:[A-Za-z0-9][A-Za-z0-9_.-]*|[^\x00]+\.(?:safetensors|pt|pth))$",
        description="a path that ends in .safetensors, .pt or .pth, timm:NAME",
    ),
]
Width = Annotated[int, Field(ge=1, le=1024)]
Side = Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
Deviation = Annotated[float, Field(gt=0)]
Words = Annotated[str, Field(min_length=1, max_length=4000)]
FileName = Annotated[
    str,
    # A run writes into a folder of this name: no separators, no "..", no case to confuse.
    Field(pattern=_NAME_FORM, max_length=100, description=_NAME),
]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


class ModelConfig(_Part):
    """The network, for square inputs of `input_size` pixels a side.

    The fields from `block` on change what `name` gives.

    Attributes:
        name: of the network.
        input_size: side of the images in pixels.
        checkpoint: weights to start from, with the names of the official ResNeSt, of timm or of
            PocketNest; a path, or `timm:` and the name of one of timm's models, which is fetched
            from the Hugging Face Hub once. Without one the weights start random and are trained.
        head: of the checkpoint. keep: it was trained on the classes of `data`, and is used as it
            is. replace: its classifier is left out for a new one, and `train` trains the network
            on the classes of `data` (transfer learning).
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
    input_size: Side = 224
    checkpoint: WeightsFile | None = None
    head: Literal["keep", "replace"] = "keep"
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

    @field_validator("head")
    @classmethod
    def _of_a_checkpoint(cls, head: str, info: ValidationInfo) -> str:
        if head == "replace" and info.data.get("checkpoint", "") is None:
            raise ValueError("replace needs model.checkpoint: without one there is no head")
        return head


class DigitsData(_Part):
    """scikit-learn's 8 x 8 handwritten digits, 1,797 images, inside the package: works offline.

    Attributes:
        kind: of the data.
        tile: draws a digit that many pixels wide, and again beside and below itself until the
            image is full; without it one digit fills the image.
        test_images: below 450, the first of them only, where accuracy is not the question.
        calibration_images: images taken out of the training images to calibrate on.
    """

    kind: Literal["digits"] = "digits"
    tile: Side | None = None
    test_images: Annotated[int, Field(ge=1, le=450)] = 450
    calibration_images: Annotated[int, Field(ge=1, le=1000)] = 180


class ImageFolderData(_Part):
    """Folders with one subfolder of images per class.

    Attributes:
        kind: of the data.
        path: folder that holds all of them, in place of `train` and `test`: the training images in
            `train`, and a test set in every folder whose name begins with test or val.
        train: folder of the training images.
        test: folder of every test set, by the name the report uses.
        calibration_images: images taken out of `train` to calibrate on.
        crop_pct: side of the square that is cut from an image's middle, as a share of the image's
            shorter side: 0.875 is 224 of 256 pixels. `augment.crop` takes its random parts from
            what lies around that square, too.
        mean: of the red, green and blue channel, pixels as shares 0..1.
        std: likewise.
    """

    kind: Literal["image_folder"] = "image_folder"
    path: PathOnDisk | None = None
    train: PathOnDisk | None = None
    test: Annotated[dict[FileName, PathOnDisk], Field(min_length=1, description=_NAME)] | None = (
        None
    )
    calibration_images: Annotated[int, Field(ge=1)] = 256
    crop_pct: Annotated[float, Field(ge=0.5, le=1)] = 1.0
    mean: Annotated[tuple[Share, Share, Share], Field(strict=False)] = IMAGENET_MEAN
    std: Annotated[tuple[Deviation, Deviation, Deviation], Field(strict=False)] = IMAGENET_STD

    @field_validator("train", "test")
    @classmethod
    def _once(cls, value: object, info: ValidationInfo) -> object:
        if "path" not in info.data:
            return value
        if value is None and info.data["path"] is None:
            raise PydanticCustomError("missing", "Field required")
        if value is not None and info.data["path"] is not None:
            raise ValueError("data.path says where the images are; remove one of them")
        return value


class CifarData(_Part):
    """CIFAR-10 or CIFAR-100.

    Attributes:
        kind: of the data.
        path: folder that holds the unpacked files.
        download: fetch them where they are not there.
        calibration_images: images taken out of the training images to calibrate on.
    """

    kind: Literal["cifar10", "cifar100"]
    path: PathOnDisk
    download: bool = False
    calibration_images: Annotated[int, Field(ge=1)] = 256


DataConfig = Annotated[DigitsData | ImageFolderData | CifarData, Field(discriminator="kind")]


class AugmentConfig(_Part):
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


class TrainConfig(_Part):
    """One training by SGD with momentum.

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
        sizes: sides of the training images in pixels, one after the other, each for an equal
            share of the steps. Small images first cost a fraction. Empty: the model's input size
            throughout.
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
    sizes: Annotated[tuple[Side, ...], Field(strict=False)] = ()
    shrink: Literal["resize", "crop"] = "resize"
    augment: AugmentConfig = AugmentConfig()

    @field_validator("accumulate")
    @classmethod
    def _parts_of_two(cls, value: int, info: ValidationInfo) -> int:
        images = info.data.get("batch_size")
        if images is not None and 2 * value > images:
            raise ValueError(f"a part needs two images, and batch_size is {images}")
        return value


class DistillConfig(_Part):
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


class PruneConfig(_Part):
    """Pruning of whole channels to one target: macs, params, size_mb or latency.

    Attributes:
        macs: share of the multiply-accumulates that is kept.
        params: share of the parameters that is kept.
        size_mb: most that the target's file may hold, in units of 1e6 bytes.
        latency: share of the unpruned file's time that is kept, or a time such as `30 ms`; both
            for one image on this machine, with the target's runtime and threads.
        criterion: what says how much a channel matters. l1, l2: the norm of its weights.
            bn_scale: the factors of its batch normalisations. taylor: how much the loss would
            change without it, to first order. fisher: to second order, with squared gradients.
        scope: among which channels the least important are sought. layer: in every group of
            tied layers the same share. stage: in every stage the same share of the cost.
            network: among all.
        steps: removes the channels in so many steps, with `step_epochs` of training between.
        step_epochs: of the fine-tuning after every step but the last.
        round_to: channel counts stay multiples of this.
        finetune: the training after the last step.
        distill: on unless null is given, which learns from the labels alone.
    """

    macs: Kept | None = None
    params: Kept | None = None
    size_mb: Annotated[float, Field(gt=0)] | None = None
    latency: LatencyTarget | None = None
    criterion: Literal["l1", "l2", "bn_scale", "taylor", "fisher"] = "bn_scale"
    scope: Literal["layer", "stage", "network"] = "layer"
    steps: Annotated[int, Field(ge=1, le=100)] = 1
    step_epochs: Annotated[int, Field(ge=0, le=100_000)] = 1
    round_to: Annotated[int, Field(ge=1, le=256)] = 8
    finetune: TrainConfig
    distill: DistillConfig | None = DistillConfig()

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in PRUNE_TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give one of {', '.join(PRUNE_TARGETS)}, not {found}")
        return self

    @property
    def milliseconds(self) -> float | None:
        """The latency asked for where it is a time; None where it is a share or not asked for."""
        return float(self.latency.removesuffix("ms")) if isinstance(self.latency, str) else None


class SparsifyConfig(_Part):
    """Weights set to zero during a training of their own, by neural-compressor's pruner.

    Attributes:
        sparsity: share of the weights that become zero; with an N:M pattern it is N / M.
        pattern: which weights go together. 1x1: each alone. 4x1 and the like: blocks of output
            channels x inputs. 2:4 and the like: so many of every so many inputs.
        criterion: magnitude, snip (weight times gradient), or snip with momentum.
        scope: whether the weights of all layers compete, or those of each layer.
        start: share of the steps after which the first weights go.
        end: share of the steps after which no more go.
        train: the training.
        distill: null learns from the labels alone.
    """

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    pattern: Annotated[
        str,
        Field(
            pattern=r"^(?:[1-9][0-9]?x[1-9][0-9]?|[1-9]:[1-9][0-9]?)$",
            description="1x1, blocks such as 4x1, or N:M such as 2:4",
        ),
    ] = "1x1"
    criterion: Literal["magnitude", "snip", "snip_momentum"] = "snip_momentum"
    scope: Literal["network", "layer"] = "network"
    start: Share = 0.0
    end: Share = 0.5
    train: TrainConfig
    distill: DistillConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"end: got {self.end:g}; must be >= start, which is {self.start:g}")
        if ":" in self.pattern:
            zeros, block = map(int, self.pattern.split(":"))
            if zeros >= block:
                raise ValueError(f"pattern: got {self.pattern}; N must be < M")
            if abs(self.sparsity - zeros / block) > 1e-6:
                raise ValueError(
                    f"sparsity: got {self.sparsity:g}; pattern {self.pattern} gives "
                    f"{zeros / block:g}"
                )
        return self


class Milestones(_Part):
    """When each phase of quantization-aware training begins, as shares of its steps.

    Attributes:
        observe: ranges are learned, nothing is rounded.
        fake_quantize: values are rounded to the grids.
        freeze_observers: grids stay as they are.
        freeze_bn: batch normalisations use their running statistics, as they will when folded.
    """

    observe: Share = 0.0
    fake_quantize: Share = 0.1
    freeze_observers: Share = 0.5
    freeze_bn: Share = 0.75

    @field_validator("fake_quantize", "freeze_observers", "freeze_bn")
    @classmethod
    def _in_order(cls, value: float, info: ValidationInfo) -> float:
        for name, earlier in info.data.items():
            if value < earlier:
                raise ValueError(f"must be >= {name}, which is {earlier:g}")
        return value


class QatConfig(_Part):
    """Quantization-aware training; left out where the target's precision is float.

    Attributes:
        train: the training; with 0 epochs the ranges are those of the calibration images.
        milestones: its phases.
        distill: null learns from the labels alone.
    """

    train: TrainConfig
    milestones: Milestones = Milestones()
    distill: DistillConfig | None = None

    @field_validator("train")
    @classmethod
    def _whole_images(cls, train: TrainConfig) -> TrainConfig:
        if train.sizes:
            raise ValueError(
                "sizes must be left out: the quantized program is made for one size of image"
            )
        return train


class TargetConfig(_Part):
    """The device and its file.

    Attributes:
        device: in words, for people.
        format: of the file.
        precision: int8 weights and activations, or float (in Core ML files float16).
        input: what an app feeds the file. normalized: float32 images (Core ML: float16),
            normalised as in training.
            uint8_rgb: 8-bit RGB pixels of the camera, at the model's input size; the file
            normalises them itself.
        cpu: what the file's numbers are stored for. any: all CPUs. x86_amx: ONNX Runtime on x86
            with AMX; the same answers, and slower on other CPUs.
        threads: those of the timed runs.
    """

    device: Annotated[str, Field(min_length=1, max_length=200)]
    format: Literal["onnx", "tflite", "coreml"]
    precision: Literal["int8", "float"]
    input: Literal["normalized", "uint8_rgb"] = "normalized"
    cpu: Literal["any", "x86_amx"] = "any"
    threads: Threads = 1

    @field_validator("cpu")
    @classmethod
    def _of_onnx(cls, cpu: str, info: ValidationInfo) -> str:
        form = (info.data.get("format"), info.data.get("precision"))
        if cpu != "any" and None not in form and form != ("onnx", "int8"):
            raise ValueError("must be any: only int8 ONNX files differ by CPU")
        return cpu

    @property
    def takes_pixels(self) -> bool:
        """Whether the file takes pixel values instead of normalised ones."""
        return self.input == "uint8_rgb"


class BudgetsConfig(_Part):
    """Limits a target must keep; null is no limit.

    Attributes:
        accuracy_drop_pt: most percentage points of top-1 lost against the float baseline.
        size_mb: largest file, in units of 1e6 bytes.
        speedup: least ratio of the float model's median latency to the target's.
        latency_ms: most milliseconds of the file for one image on this machine, by the median.
        latency_share: most of the unpruned file's time; judged where `prune.latency` is given.
    """

    accuracy_drop_pt: Annotated[float, Field(ge=0, le=100)] | None = None
    size_mb: Annotated[float, Field(gt=0)] | None = None
    speedup: Annotated[float, Field(gt=0)] | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    latency_share: Annotated[float, Field(gt=0)] | None = None


class MeasureConfig(_Part):
    """How latency is timed.

    Attributes:
        warmup: runs that do not count.
        rounds: runs that do; the files and the float model take turns.
    """

    warmup: Annotated[int, Field(ge=0, le=100_000)] = 5
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 30


class SaveConfig(_Part):
    """How often a training saves its state, to go on from when it was stopped.

    Attributes:
        seconds: between two states; more where writing one takes over a fiftieth of that.
        steps: between two states at most.
    """

    seconds: Annotated[float, Field(gt=0)] = 60.0
    steps: Annotated[int, Field(ge=1)] | None = None


class GuardConfig(_Part):
    """Where a run stops because a stage went wrong, not because a budget is missed.

    Changing it makes no stage anew: a run that was stopped goes on from the result it had.

    Attributes:
        accuracy_drop_pt: most percentage points of top-1, on the first test set, that a stage may
            lie below the best stage before it; null lets every stage pass.
    """

    accuracy_drop_pt: Annotated[float, Field(gt=0, le=100)] | None = 30.0


class CardConfig(_Part):
    """What only people know of a model: its file and the bundle's model card say it.

    Attributes:
        intended_use: what the model is for.
        limits: what it is not for, and what it is known to get wrong.
        licence: of the model, such as Apache-2.0.
        author: who answers for it.
    """

    intended_use: Words | None = None
    limits: Words | None = None
    licence: Words | None = None
    author: Words | None = None


class Recipe(_Part):
    """One run for one target device.

    Attributes:
        name: names the folder of the run; without it, the file's name.
        description: in words, for people.
        seed: of all random numbers.
        threads: CPU threads of training and calibration; part of bit-for-bit repeatability.
        model: the network.
        data: its images.
        train: training of the float network; skipped where `model.checkpoint` is used as it is.
        prune: removal of channels; null does not prune.
        sparsify: zeroing of single weights; null leaves every weight.
        qat: quantization-aware training.
        target: the device and its file.
        budgets: limits that the file must keep, else the exit code is 3.
        measure: timing.
        save: states of a training, to go on from.
        guard: where a run stops because a stage went wrong.
        card: what the file and the bundle's model card say beside what was measured.
    """

    name: FileName
    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    threads: Threads = 2
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    prune: PruneConfig | None = None
    sparsify: SparsifyConfig | None = None
    qat: QatConfig
    target: TargetConfig
    budgets: BudgetsConfig = BudgetsConfig()
    measure: MeasureConfig = MeasureConfig()
    save: SaveConfig = SaveConfig()
    guard: GuardConfig = GuardConfig()
    card: CardConfig = CardConfig()

    @field_validator("prune", "sparsify", "qat")
    @classmethod
    def _only_the_float_network(cls, part: _Part | None) -> _Part | None:
        """Later trainings are of other forms of the network, which drop and average nothing."""
        train = getattr(part, "finetune", None) or getattr(part, "train", None)
        for name, off in (("dropblock", 0.0), ("dropout", 0.0), ("ema", None)):
            if train is not None and getattr(train, name) != off:
                where = "finetune" if isinstance(part, PruneConfig) else "train"
                raise ValueError(
                    f"{where}.{name}: got {getattr(train, name):g}; only `train` can have it"
                )
        return part

    @field_validator("train", "prune", "sparsify")
    @classmethod
    def _crops_fit(cls, part: _Part | None, info: ValidationInfo) -> _Part | None:
        train = part.finetune if isinstance(part, PruneConfig) else part
        train = train.train if isinstance(train, SparsifyConfig) else train
        if not isinstance(train, TrainConfig) or "model" not in info.data:
            return part
        side = info.data["model"].input_size
        too_large = [size for size in train.sizes if size > side]
        if too_large and train.shrink == "crop":
            raise ValueError(
                f"sizes: got {max(too_large)}; a part cut out of an image is at most "
                f"model.input_size, which is {side}"
            )
        return part


def load_recipes(paths: Sequence[Path], overrides: Sequence[str] = ()) -> list[Recipe]:
    """Read and check recipes, in the order of `paths`.

    Args:
        paths: YAML files. A file may say `extends: base.yaml` (relative to itself): mappings
            merge, null removes, all else replaces. Relative paths in a recipe are relative to
            the file that names them and come back absolute.
        overrides: `a.b=c` texts laid over every recipe, c in YAML; relative paths here are
            relative to the working directory.

    Returns:
        One recipe per path.

    Raises:
        InputError: with one line for every problem of every file and override.
    """
    problems: list[str] = []
    if not paths:
        problems.append("no recipe given; name at least one YAML file")
    settings = read_overrides(overrides, problems)
    recipes: list[Recipe] = []
    names: dict[object, Path] = {}
    for path in map(Path, paths):
        tree = read_tree(path, problems)
        if tree is None:
            continue
        for setting in settings:
            tree = merge(tree, setting)
        tree = _named(tree, path, names, problems)
        try:
            recipes.append(Recipe.model_validate(plain(absolute_paths(tree, _PATHS))))
        except ValidationError as error:
            problems += explain(error, tree, _schema())
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return recipes


def _named(tree: Value, path: Path, names: dict[object, Path], problems: list[str]) -> Value:
    """Give a recipe without a name that of its file; no two of one call may share a name."""
    assert isinstance(tree.content, dict)
    name = tree.content.get("name")
    if name is None or name.removed:
        name = Value(Place(f"{path}:1", path.parent), path.stem)
    if isinstance(name.content, str) and name.content in names:
        problems.append(
            f"{name.place.text}: name: got {name.content!r}, the name of {names[name.content]} "
            "too; give every recipe of a run its own"
        )
    elif isinstance(name.content, str):
        names[name.content] = path
    return replace(tree, content=tree.content | {"name": name})


def _schema() -> dict[str, Any]:
    schema = Recipe.model_json_schema()
    extends = {"type": "string", "description": "The recipe that this one changes."}
    schema["properties"] = {"extends": extends} | schema["properties"]
    return schema


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, for editors.

    A key may be absent, since the extended file may hold it, and a value may be null, which
    removes it; only a null that drops a key of another kind of data is marked, though it loads.
    """
    schema = _schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
        for key, value in part["properties"].items():
            part["properties"][key] = {"anyOf": [value, {"type": "null"}]}
    data = schema["properties"]["data"]["anyOf"][0]
    del data["discriminator"]
    # Without `kind`, which may be in the extended file, several kinds of data can fit.
    data["anyOf"] = data.pop("oneOf")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def resolved_yaml(recipe: Recipe) -> str:
    """Return the whole recipe, defaults filled in and paths absolute, as YAML that loads again."""
    return write_yaml(recipe.model_dump(mode="json"))
