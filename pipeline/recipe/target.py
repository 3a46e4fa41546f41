"""The device, its budgets and what is measured."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from pipeline.recipe.known import Known, known_format
from pipeline.recipe.values import Part, Threads, Words

Output = Literal["logits", "probabilities"]
"""What a file gives; what the output of the file is called."""


class TargetConfig(Part):
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
        opset: of ONNX files. 17 is for older runtimes; the operations and the answers are the
            same.
        products: how int8 Core ML files multiply tensors. Neural Engines are reported to take one
            scale for another there. clipped: each product is held to the range of its grid before
            it is rounded; the same answers. float16: its factors, too, are read without
            `dequantize`, and so in float16. quantized: neither.
        output: what the file gives. logits: numbers, of which an app makes probabilities.
            probabilities: the file makes them itself, in float behind its last layer: by softmax,
            or by sigmoid where the task has one logit or several labels.
        classifier: of Core ML files that give probabilities: they give the name of the class and
            a dictionary of all probabilities, as Vision and Xcode's preview take them.
        threads: those of the timed runs.
    """

    device: Annotated[str, Field(min_length=1, max_length=200)]
    format: Annotated[str, AfterValidator(known_format)]
    precision: Literal["int8", "float"]
    input: Literal["normalized", "uint8_rgb"] = "normalized"
    cpu: Literal["any", "x86_amx"] = "any"
    opset: Literal[17, 21] = 21
    products: Literal["quantized", "clipped", "float16"] = "quantized"
    output: Output = "logits"
    classifier: bool = False
    threads: Threads = 1

    @field_validator("cpu")
    @classmethod
    def _that_files_differ_by(cls, cpu: str, info: ValidationInfo) -> str:
        form, precision = info.data.get("format"), info.data.get("precision")
        if cpu == "any" or None in (form, precision) or not isinstance(info.context, Known):
            return cpu
        formats = info.context.formats
        fitting = {name: one.title for name, one in formats.items() if cpu in one.options}
        if form not in fitting or precision != "int8":
            titles = " and ".join(fitting.values())
            raise ValueError(f"must be any: only int8 {titles} files differ by CPU")
        return cpu

    @field_validator("opset")
    @classmethod
    def _of_a_format_that_has_opsets(cls, opset: int, info: ValidationInfo) -> int:
        form = info.data.get("format")
        if opset != 21 and form is not None and isinstance(info.context, Known):
            having = [
                n for n, one in info.context.formats.items() if f"opset{opset}" in one.options
            ]
            if form in info.context.formats and form not in having:
                raise ValueError(f"must be 21: only files of {', '.join(having)} have an opset")
        return opset

    @field_validator("products")
    @classmethod
    def _of_a_format_that_has_them(cls, products: str, info: ValidationInfo) -> str:
        form, precision = info.data.get("format"), info.data.get("precision")
        if products == "quantized" or None in (form, precision):
            return products
        if not isinstance(info.context, Known):
            return products
        formats = info.context.formats
        having = {
            n: one.title for n, one in formats.items() if f"{products}_products" in one.options
        }
        if form not in having or precision != "int8":
            titles = " and ".join(having.values())
            raise ValueError(f"must be quantized: only int8 {titles} files have other products")
        return products

    @field_validator("output")
    @classmethod
    def _that_the_format_can_give(cls, output: str, info: ValidationInfo) -> str:
        form = info.data.get("format")
        if output == "logits" or form is None or not isinstance(info.context, Known):
            return output
        formats = info.context.formats
        having = [one.title for one in formats.values() if one.head is not None]
        if form in formats and formats[form].head is None:
            raise ValueError(f"must be logits: only {' and '.join(having)} files can give others")
        return output

    @field_validator("classifier")
    @classmethod
    def _of_a_format_with_classifiers(cls, classifier: bool, info: ValidationInfo) -> bool:
        form, output = info.data.get("format"), info.data.get("output")
        if not classifier or None in (form, output) or not isinstance(info.context, Known):
            return classifier
        formats = info.context.formats
        having = {n: one.title for n, one in formats.items() if "classifier" in one.options}
        if form not in having:
            raise ValueError(f"must be false: only {' and '.join(having.values())} has classifiers")
        if output == "logits":
            raise ValueError("a classifier gives probabilities; set output to probabilities")
        return classifier

    @property
    def takes_pixels(self) -> bool:
        """Whether the file takes pixel values instead of normalised ones."""
        return self.input == "uint8_rgb"


class LatencyLimits(Part):
    """Limits of time on several machines, in milliseconds; null is no limit.

    Attributes:
        host: on the machine that runs the recipe.
        device: on every device that the file was measured on.
    """

    host: Annotated[float, Field(gt=0)] | None = None
    device: Annotated[float, Field(gt=0)] | None = None


_LIMITS = "milliseconds above 0, or {host: ..., device: ...}"


def _to_limits(value: object) -> object:
    """A number, or the limits of machines; pydantic's own words are of a union of both."""
    if value is None or isinstance(value, LatencyLimits):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return value
    try:
        return LatencyLimits.model_validate(value)
    except ValidationError:
        raise ValueError(f"must be {_LIMITS}") from None


_MILLISECONDS = {"type": ["number", "null"], "exclusiveMinimum": 0}
LatencyBudget = Annotated[
    float | LatencyLimits,
    BeforeValidator(_to_limits),
    WithJsonSchema(
        {
            "type": ["number", "object"],
            "exclusiveMinimum": 0,
            "properties": {"host": _MILLISECONDS, "device": _MILLISECONDS},
            "additionalProperties": False,
            "description": _LIMITS,
        }
    ),
]


class BudgetsConfig(Part):
    """Limits a target must keep; null is no limit.

    Attributes:
        accuracy_drop_pt: most percentage points of top-1 lost against the float baseline; of mAP,
            where images have several labels.
        size_mb: largest file, in units of 1e6 bytes.
        download_mb: largest file as it is sent, compressed by deflate, in units of 1e6 bytes.
        speedup: least number of times that it is as fast as the float model, timed in turn.
        latency_ms: most milliseconds of the file for one image on this machine, by the median;
            `{device: 15}` is on each device that `pocketnest device` measured, on the unit and
            number of threads that is fastest there.
        latency_share: most of the unpruned file's time; judged where `prune.latency` is given.
    """

    accuracy_drop_pt: Annotated[float, Field(ge=0, le=100)] | None = None
    size_mb: Annotated[float, Field(gt=0)] | None = None
    download_mb: Annotated[float, Field(gt=0)] | None = None
    speedup: Annotated[float, Field(gt=0)] | None = None
    latency_ms: LatencyBudget | None = None
    latency_share: Annotated[float, Field(gt=0)] | None = None

    @property
    def limits(self) -> dict[str, float | None]:
        """Every limit, by what it judges."""
        given = self.latency_ms
        times = given if isinstance(given, LatencyLimits) else LatencyLimits(host=given)
        return {
            "accuracy_drop_pt": self.accuracy_drop_pt,
            "size_mb": self.size_mb,
            "download_mb": self.download_mb,
            "speedup": self.speedup,
            "latency_ms": times.host,
            "device_latency_ms": times.device,
            "latency_share": self.latency_share,
        }


class MeasureConfig(Part):
    """How latency is timed.

    Attributes:
        warmup: runs that do not count.
        rounds: runs that do; the files and the float model take turns.
    """

    warmup: Annotated[int, Field(ge=0, le=100_000)] = 5
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 30


class VerifyConfig(Part):
    """How files are verified, and where beside the machine that writes them.

    Attributes:
        images: at most so many calibration images, and as many of each test set, are what a file
            must answer as its program does. Of a larger set they are drawn, in proportion to its
            classes, always the same ones. The file's accuracy is that of whole test sets.
        arm64: also on emulated ARM64 processors, with the runtimes that phones have: a file that
            computes otherwise there stops the run. Only ONNX and TFLite files; the machine that
            runs the recipe must be Debian 12 on x86-64. It takes minutes.
    """

    images: Annotated[int, Field(ge=500)] = 1000
    arm64: bool = False


class GuardConfig(Part):
    """Where a run stops because a stage went wrong, not because a budget is missed.

    Changing it makes no stage anew: a run that was stopped goes on from the result it had.

    Attributes:
        accuracy_drop_pt: most percentage points of top-1 (or mAP), on the first test set, that a
            stage may lie below the best stage before it; null lets every stage pass.
    """

    accuracy_drop_pt: Annotated[float, Field(gt=0, le=100)] | None = 30.0


class CardConfig(Part):
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
