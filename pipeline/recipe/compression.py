"""How a recipe prunes, sparsifies and quantizes."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.base.record import Share
from pipeline.recipe.training import DistillConfig, TrainConfig
from pipeline.recipe.values import Kept, LatencyTarget, Part, Pattern
from pipeline.recipe.weight_forms import WEIGHT_LIMITS, WeightForm

PruneTarget = Literal["macs", "params", "size_mb", "latency"]
PRUNE_TARGETS: tuple[PruneTarget, ...] = get_args(PruneTarget)


class PruneConfig(Part):
    """Pruning of whole channels to one target: macs, params, size_mb or latency.

    Attributes:
        macs: share of the multiply-accumulates that is kept.
        params: share of the parameters that is kept.
        size_mb: most that the target's file may hold, in units of 1e6 bytes.
        latency: share of the unpruned file's time that is kept, or a time such as `30 ms`; both
            for one image on this machine, with the target's runtime and threads.
        criterion: what says how much a channel matters. l1, l2: the norm of its weights.
            bn_scale: the factors of its batch normalisations, l1 where it has none. taylor: how
            much the loss would change without it, to first order. fisher: to second order, with
            squared gradients.
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


class SparsifyConfig(Part):
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


class Milestones(Part):
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


RangesKind = Literal["moving_average", "min_max", "percentile", "mse"]
Percent = Annotated[float, Field(ge=90, le=100)]


class WeightsConfig(Part):
    """How many bits weights have; activations have 8 whatever is said here.

    Attributes:
        forms: of a layer's weights. int8: whole numbers -127..127 of the channel's scale. int4:
            -7..7, of steps that training learns. int4_blocks: the same with steps of up to 32
            input channels each, 1 to 16 times the channel's. palette16, palette64: one of so many
            values of the layer, learned as well, times the channel's scale. With one form every
            layer has it. With several each layer gets one of them, for the least loss that keeps
            one of the next three limits.
        size_mb: most that the target's file may hold, in units of 1e6 bytes.
        download_mb: the same for the compressed file.
        accuracy_drop_pt: most points that the primary figure may fall on the calibration images,
            before any training; the file is as small as that allows. Calibration images of a
            folder of their own have no labels: there, most points of them whose answer may change.
        layers: forms of single layers, by patterns of their paths such as `stem.*` or `head`, as
            `qat.float` has them.
        rounding: of weights of few bits where nothing is trained (0 epochs). nearest. adaptive:
            one weight after the other, each making good what those before it have changed in the
            layer's answers to the calibration images.
    """

    forms: Annotated[tuple[WeightForm, ...], Field(strict=False, min_length=1)] = ("int8",)
    size_mb: Annotated[float, Field(gt=0)] | None = None
    download_mb: Annotated[float, Field(gt=0)] | None = None
    accuracy_drop_pt: Annotated[float, Field(ge=0, le=100)] | None = None
    layers: dict[Pattern, WeightForm] = Field(default_factory=dict)
    rounding: Literal["nearest", "adaptive"] = "adaptive"

    @model_validator(mode="after")
    def _one_limit_of_several(self) -> Self:
        if len(set(self.forms)) < len(self.forms):
            raise ValueError(f"forms: got {', '.join(self.forms)}; give each once")
        given = [name for name in WEIGHT_LIMITS if getattr(self, name) is not None]
        if len(self.forms) > 1 and len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(
                f"forms: with several, give one of {', '.join(WEIGHT_LIMITS)}, not {found}"
            )
        if len(self.forms) == 1 and given:
            raise ValueError(f"{given[0]}: must be left out, since every layer has the only form")
        return self

    @property
    def few_bits(self) -> bool:
        """Whether any layer may have fewer bits than 8."""
        return any(form != "int8" for form in (*self.forms, *self.layers.values()))

    @property
    def chosen_by_size(self) -> bool:
        """Whether forms are chosen layer by layer."""
        return len(self.forms) > 1


class QatConfig(Part):
    """Quantization-aware training; left out where the target's precision is float.

    Attributes:
        train: the training; with 0 epochs the ranges are those of the calibration images
            (post-training quantization).
        ranges: how the ranges of activations come of the calibration images. mse: those whose
            int8 numbers are nearest to the float ones, by mean squared error. min_max: all that was
            seen. percentile: all but the outermost. moving_average: the average of every batch's
            smallest and largest number. A training goes on from there.
        percentile: of the numbers that lie within a range of `ranges: percentile`; as many are left
            out at either end.
        equalize: whether channels between two convolutions, with a ReLU or nothing between, are
            scaled to ranges alike first, which changes no answer of the float network; so are those
            that are put side by side, shuffled or handed on before convolutions read them.
        correct_bias: whether the biases take off what the rounding of the weights does to the mean
            of every channel, as the calibration images show it; before any training.
        milestones: its phases.
        distill: null learns from the labels alone.
        weights: their bits.
        float: modules that stay in float, by patterns of their paths such as `blocks.0.conv1`,
            `features.18.*` or `classifier`, and all that they hold. Their weights and activations
            are not rounded, in training or in the file.
    """

    train: TrainConfig
    ranges: RangesKind = "mse"
    percentile: Percent = 99.99
    equalize: bool = False
    correct_bias: bool = True
    milestones: Milestones = Milestones()
    distill: DistillConfig | None = None
    weights: WeightsConfig = WeightsConfig()
    # Below this line `float` is no type: annotations would take the field for it.
    float: Annotated[tuple[Pattern, ...], Field(strict=False)] = ()

    @field_validator("train")
    @classmethod
    def _whole_images(cls, train: TrainConfig) -> TrainConfig:
        if train.sizes:
            raise ValueError(
                "sizes must be left out: the quantized program is made for one size of image"
            )
        return train
