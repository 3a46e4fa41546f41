"""What `pocketnest baseline` found out on one machine: the types of its file.

Everything is as it was found, nothing was set: clocks are those of the moment, and what could not
be measured has its reason in `not_measured`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.machine import CodeInfo, HostInfo
from pipeline.base.record import (
    Above0,
    Count,
    MeasuredRecord,
    Positive,
    Record,
    Sha256,
    Text,
    UtcTime,
)
from pipeline.measure.latency import Latency
from pipeline.networks.model_info import ModelInfo
from pipeline.recipe.recipe import RecipeInfo
from pipeline.tasks.accuracy import AnyAccuracy, Confusion

Precision = Literal["fp32", "tf32", "bf16"]
EXACT: Precision = "fp32"
"""The precision that reports take their figures from."""

Channels = Annotated[tuple[float, ...], Field(strict=False)]


class Clocks(Record):
    """Clocks of a device as they were found; None is what the source does not say.

    Attributes:
        source: what said so.
        core_mhz: of a GPU's multiprocessors; of a CPU, the median over its cores.
        memory_mhz: of a GPU's memory.
        power_limit_w: of a GPU.
    """

    source: Literal["nvidia-smi", "/proc/cpuinfo"]
    core_mhz: Above0
    memory_mhz: Above0 | None
    power_limit_w: Above0 | None


class ClocksFound(Record):
    """Clocks before the first timed run and right after the last; or why they are not known."""

    before: Clocks | None
    after: Clocks | None
    missing: Text | None = None

    @model_validator(mode="after")
    def _both_or_a_reason(self) -> Self:
        if (self.missing is None) is (self.before is None or self.after is None):
            raise ValueError("give the clocks before and after, or missing, the reason why not")
        return self


class TestedImages(Record):
    """The images that accuracy is of, and how they were normalised."""

    name: Text
    sha256: Sha256
    mean: Channels
    std: Channels
    test_sets: Annotated[dict[Text, Positive], Field(min_length=1)]


class Timing(Record):
    """Time of one call on a batch in one precision, the better way of the two that were tried.

    Attributes:
        precision: of the multiplications. tf32: float32 numbers, products of 10-bit mantissas.
            bf16: bfloat16 weights and activations, batch normalisation's own in float32.
        batch: images of a call.
        memory_format: of weights and images.
        cuda_graph: whether `latency_ms` is of a CUDA graph that is replayed.
        latency_ms: of the faster way, by its median.
        images_per_second: batch / median.
        other_ms: the slower way: with a CUDA graph where `latency_ms` is without, or the reverse.
        other_missing: why there is no other way.
    """

    precision: Precision
    batch: Positive
    memory_format: Literal["contiguous", "channels_last"]
    cuda_graph: bool
    latency_ms: Latency
    images_per_second: Above0
    other_ms: Latency | None
    other_missing: Text | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.other_ms is None) is (self.other_missing is None):
            raise ValueError("give other_ms or other_missing, the reason why not, and not both")
        if self.latency_ms.batch != self.batch:
            raise ValueError(f"batch: got {self.batch}, but timed {self.latency_ms.batch}")
        if self.images_per_second != images_per_second(self.latency_ms):
            raise ValueError("images_per_second: is not that of latency_ms")
        if self.other_ms is not None and self.other_ms.median < self.latency_ms.median:
            raise ValueError("other_ms: is the faster of both")
        return self


def images_per_second(latency: Latency) -> float:
    """Images that calls one after another get through in a second."""
    return latency.batch * 1e3 / latency.median


class FloatBaseline(Record):
    """The float network on one machine.

    Attributes:
        model_sha256: of the network's shape and weights; what makes it the same network.
        device: that computed.
        measured_at: when the first figure was taken.
        tools: versions of what computed.
        size_bytes: of the float32 weights in a file.
        accuracy: by precision and test set; that of fp32 is what reports compare with.
        named: what fp32 named for every image, by test set: the number of a class; or 0 or 1 for
            every label; or pixels by class, as of `tasks.class_maps.counted`.
        timings: by precision and batch, the largest batch last.
        not_measured: what is left out, and why.
    """

    schema_version: Literal[1] = 1
    model_sha256: Sha256
    model: ModelInfo
    data: TestedImages
    recipe: RecipeInfo
    code: CodeInfo
    host: HostInfo
    tools: dict[Text, Text]
    device: Text
    device_kind: Literal["gpu", "cpu"]
    clocks: ClocksFound
    measured_at: UtcTime
    size_bytes: Positive
    accuracy: dict[Precision, dict[Text, AnyAccuracy]]
    named: dict[Text, tuple[Count, ...] | tuple[tuple[Count, ...], ...]]
    timings: tuple[Timing, ...]
    not_measured: dict[Text, Text] = Field(default_factory=dict)

    def timing(self, precision: Precision, batch: int) -> Timing:
        """The timing of a batch in a precision.

        Raises:
            KeyError: it was not taken.
        """
        for found in self.timings:
            if (found.precision, found.batch) == (precision, batch):
                return found
        raise KeyError(f"{precision}, batch {batch}")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.device != (self.host.gpu if self.device_kind == "gpu" else self.host.cpu):
            raise ValueError(f"device: got {self.device!r}, which is not the host's")
        if "torch" not in self.tools:
            raise ValueError("tools: torch is missing")
        if EXACT not in self.accuracy:
            raise ValueError(f"accuracy: {EXACT} is missing")
        for precision, tested in self.accuracy.items():
            counts = {name: found.images for name, found in tested.items()}
            if counts != self.data.test_sets:
                raise ValueError(f"accuracy: {precision} is of {counts}, not {self.data.test_sets}")
        if {name: len(named) for name, named in self.named.items()} != self.data.test_sets:
            raise ValueError("named: gives not every image of every test set a class")
        classes = self.model.num_classes
        if any(_is_of_others(one, classes) for named in self.named.values() for one in named):
            raise ValueError(f"named: the network has {classes} classes")
        timed = [(found.precision, found.batch) for found in self.timings]
        if (EXACT, 1) not in timed or len(set(timed)) < len(timed):
            raise ValueError(f"timings: must have {EXACT} of one image, and each only once")
        return self


def _is_of_others(named: int | tuple[int, ...], classes: int) -> bool:
    """Whether what was named for an image is of another number of classes, or labels."""
    if isinstance(named, int):
        return named >= classes
    if len(named) == 2 * classes:  # pixels that each was named for, and those of them rightly
        return any(right > all_ for all_, right in zip(named, named[classes:], strict=False))
    return len(named) != classes or max(named, default=0) > 1


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a baseline's file, shipped as baseline.schema.json beside this module."""
    schema = FloatBaseline.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


BASELINES = "baselines"
"""Name of the folder, beside those of the runs, of float networks measured on some machine."""

OLDER = "the report is of a PocketNest that did not record it"


def refuse_other_counts(
    name: str, accuracy: Mapping[str, AnyAccuracy] | None, confusion: Mapping[str, Confusion] | None
) -> None:
    """Refuse classes that were counted on other images than the accuracy."""
    if confusion is None:
        return
    counted = {key: (found.images, found.right / found.images) for key, found in confusion.items()}
    measured = {key: (found.images, found.figure) for key, found in (accuracy or {}).items()}
    if counted != measured:
        raise ValueError(f"{name}: confusion gives {counted}, but accuracy {measured}")


class Origin(MeasuredRecord):
    """Where and when figures were measured that were not measured here.

    Attributes:
        file: that `pocketnest baseline` wrote there.
        sha256: of its content.
        measured_at: in UTC.
        cpu: of the machine, whose GPU is the baseline's device.
        code: the PocketNest that measured.
        torch: the version that computed.
        cuda_graph: whether the latency is of a CUDA graph.
    """

    file: Text
    sha256: Sha256
    measured_at: UtcTime
    cpu: Text
    code: CodeInfo
    torch: Text
    cuda_graph: bool


class Baseline(MeasuredRecord):
    """The float model on one device; `measured_here` is False for figures of another machine.

    `latency_by_threads` holds further timings, by number of CPU threads; `confusion` which classes
    were named, by test set; `origin` where figures of another machine are from, None in reports
    of a PocketNest that did not record it.
    """

    device: Text
    device_kind: Literal["gpu", "cpu"]
    measured_here: bool
    accuracy: Annotated[dict[Text, AnyAccuracy], Field(min_length=1)]
    latency_ms: Latency | None
    latency_missing: Text | None = None
    latency_by_threads: dict[Text, Latency] = Field(default_factory=dict)
    size_bytes: Positive
    confusion: dict[Text, Confusion] | None = None
    confusion_missing: Text | None = OLDER
    origin: Origin | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_other_counts("baseline", self.accuracy, self.confusion)
        if self.measured_here and self.origin is not None:
            raise ValueError("origin: is of figures of another machine, but measured_here is True")
        return self
