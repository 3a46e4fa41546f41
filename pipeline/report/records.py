"""What a run measured: the types of report.json, and the figures that follow from others.

    latency = latency_of([20.9, 21.3, 23.0], threads=1, batch=1)
    speedup(float_latency, latency)  # 4.01

A figure that could not be measured is None and has its reason beside it; a record with neither,
with both, or that contradicts itself cannot be made. Shares are 0..1, a megabyte is 1e6 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.machine import CodeInfo, HostInfo
from pipeline.base.record import (
    Above0,
    Count,
    MeasuredRecord,
    Positive,
    Sha256,
    Share,
    Text,
    UtcTime,
)
from pipeline.compress.pruning.kept import Kept
from pipeline.compress.quantization.chosen import Weights
from pipeline.compress.training.epoch import Epoch
from pipeline.formats.delegates import Delegate
from pipeline.formats.formats import FormatName
from pipeline.formats.scales import ScalesExact
from pipeline.measure.arm64.record import OnCpu
from pipeline.measure.baseline.record import OLDER, Baseline, refuse_other_counts
from pipeline.measure.device.record import OnDevice
from pipeline.measure.downloads import Download
from pipeline.measure.first_use import FirstUse
from pipeline.measure.latency import Latency
from pipeline.measure.parity_record import Parity
from pipeline.networks.float_layer import FloatLayer
from pipeline.networks.layer_width import LayerWidth
from pipeline.networks.model_info import ModelInfo
from pipeline.recipe.recipe import RecipeInfo
from pipeline.tasks.accuracy import AnyAccuracy, Changes, Confusion, accuracy_drop_pt

Metric = Literal[
    "accuracy_drop_pt",
    "size_mb",
    "download_mb",
    "speedup",
    "latency_ms",
    "device_latency_ms",
    "latency_share",
]


COMBINED = "combined"
"""Name of the report of several recipes, and of the directory that holds it."""


class DataInfo(MeasuredRecord):
    """The images.

    Attributes:
        name: kind of data.
        sha256: of class names, labels and content.
        train_images: number of them.
        test_sets: number of images of each.
        classes: their names, in order.
        damaged: image files that were left out since they cannot be decoded, by set.
        passed_over: files of the folders that are not read as images, by suffix.
    """

    name: Text
    sha256: Sha256
    train_images: Count
    test_sets: Annotated[dict[Text, Positive], Field(min_length=1)]
    classes: tuple[str, ...] = ()
    damaged: dict[Text, Positive] = Field(default_factory=dict)
    passed_over: dict[Text, Positive] = Field(default_factory=dict)


class StageRecord(MeasuredRecord):
    """One stage of the run; a figure the stage does not measure is None.

    `curve` is that of a stage that trains. `top1_images` is how many images of the first test set
    `top1` is of; None where it is of all.
    """

    name: Text
    status: Literal["done", "reused"]
    seconds: Annotated[float, Field(ge=0)]
    params: Count | None = None
    macs: Count | None = None
    top1: Share | None = None
    top1_images: Positive | None = None
    curve: tuple[Epoch, ...] = ()

    @property
    def figure(self) -> float | None:
        """The primary figure after it, a share."""
        return self.top1


class Budget(MeasuredRecord):
    """One limit and whether it was kept; `passed` is None where there is no value to judge."""

    metric: Metric
    limit: float
    value: float | None
    passed: bool | None
    missing: Text | None = None

    @model_validator(mode="after")
    def _judged(self) -> Self:
        expected = _kept(self.metric, self.limit, self.value)
        if self.passed is not expected:
            raise ValueError(f"passed: got {self.passed}; these figures give {expected}")
        return self


def _kept(metric: Metric, limit: float, value: float | None) -> bool | None:
    return None if value is None else (value >= limit if metric == "speedup" else value <= limit)


def budget(metric: Metric, limit: float, value: float | None, missing: str | None = None) -> Budget:
    """Judge `value`: a speedup must reach its limit, everything else must not exceed it.

    Raises:
        ValueError: when neither or both of `value` and `missing`, the reason, are given.
    """
    passed = _kept(metric, limit, value)
    return Budget(metric=metric, limit=limit, value=value, passed=passed, missing=missing)


def all_met(budgets: Sequence[Budget]) -> bool:
    """Whether no budget failed; one that could not be measured does not fail."""
    return all(item.passed is not False for item in budgets)


class Pruning(MeasuredRecord):
    """What channel pruning was to reach and what it reached, in `unit`.

    Attributes:
        goal: what was to become smaller.
        asked: by the recipe.
        unit: of the figures; `share` is of the unpruned network, or of its file's time.
        predicted: by the search that chose the widths.
        reached: counted, or measured on the exported file.
        reached_share: of a latency, the median over paired runs of the file's time to that of the
            unpruned network's file; None for other goals and where it cannot be timed.
        first_predicted: of a latency, the share of the time that the first widths were predicted
            to take, before any correction.
        first_measured: what they took.
        kept: layers whose channels all stay, and why.
    """

    goal: Literal["macs", "params", "size_mb", "latency"]
    asked: Above0
    unit: Literal["share", "MB", "ms"]
    predicted: Above0
    reached: Above0 | None
    reached_missing: Text | None = None
    reached_share: Above0 | None = None
    first_predicted: Above0 | None = None
    first_measured: Above0 | None = None
    kept: tuple[Kept, ...] = ()

    @property
    def prediction_error(self) -> float | None:
        """(predicted - reached) / reached."""
        return None if self.reached is None else self.predicted / self.reached - 1


class TargetResult(MeasuredRecord):
    """One exported file, judged by running it.

    Attributes:
        path: of the file, from the folder of the report.
        download_bytes: its size compressed by deflate, as app stores and the web send it.
        downloads: its size by each compressor; none in older reports.
        accuracy_missing: why there is no `accuracy`, `accuracy_drop_pt` and `agreement`.
        input: what the file takes: normalised float32, or 8-bit RGB pixels.
        evaluated: by the format's own runtime, or by the reference evaluator.
        arm64: what it does on emulated ARM64 processors; none where `verify.arm64` is not set.
        devices: what it did on real devices, each with the machine's name; none where it was not
            measured there.
        agreement: share of test images with the same top-1 as the program it was written from, or
            of the decisions on their labels.
        agreement_images: how many test images that is of; None where it is of all.
        parity: the gates, over calibration and test images, or a sample of them.
        int8_coverage: share of multiply-accumulates that run in int8 kernels.
        left_in_float: what the recipe has in float in an int8 file, by module.
        partitions: parts of the graph that LiteRT gives to XNNPACK; 1 is the whole graph.
        outside: operations that XNNPACK leaves to slower kernels, and why.
        delegates: what is known of accelerators and its operations; none in older reports.
        takes: the input, in words: name, type, layout, and how a pixel becomes a value. None in
            older reports, as the four below.
        gives: the output, in words.
        intended_use: of the recipe's card; None where it says nothing.
        first_use: what the file costs before its second answer; None where it was not timed.
        measured_at: when the file was measured.
        latency_by_threads: further timings, by number of CPU threads.
        speedup: how many times as fast the file is as the float model: the median over rounds in
            which both took turns. Missing where the rounds leave it open which is faster.
        speedup_p10: a tenth of the rounds have less; None in older reports.
        speedup_p90: a tenth of the rounds have more.
        pruning: None where no channels were pruned.
        sparsity: share of the weights that were set to zero; None where none were.
        weights: the bits of every layer's weights; None where all have 8, or are float.
        confusion: which classes the file named, by test set; None where an image may have several
            labels.
        changes: what became of the images from the float model to the file, by test set.
        layers: widths before and after pruning.
        stages: that this file came of, in order.
    """

    name: Text
    device: Text
    format: FormatName
    precision: Literal["int8", "float"]
    runtime: Text
    input: Literal["normalized", "uint8_rgb"]
    evaluated: Literal["runtime", "reference"]
    path: Text
    sha256: Sha256
    size_bytes: Positive
    download_bytes: Positive
    downloads: tuple[Download, ...] = ()
    accuracy: Annotated[dict[Text, AnyAccuracy], Field(min_length=1)] | None
    accuracy_missing: Text | None = None
    accuracy_drop_pt: float | None
    agreement: Share | None
    agreement_images: Positive | None = None
    parity: Parity
    arm64: tuple[OnCpu, ...] = ()
    devices: tuple[OnDevice, ...] = ()
    scales_exact: ScalesExact | None
    scales_missing: Text | None = None
    int8_coverage: Share | None
    coverage_missing: Text | None = None
    left_in_float: tuple[FloatLayer, ...] = ()
    ops: dict[Text, Positive]
    partitions: Count | None
    partitions_missing: Text | None = None
    outside: tuple[Text, ...] = ()
    delegates: tuple[Delegate, ...] = ()
    takes: Text | None = None
    gives: Text | None = None
    intended_use: Text | None = None
    first_use: FirstUse | None = None
    measured_at: UtcTime | None = None
    latency_ms: Latency | None
    latency_missing: Text | None = None
    latency_by_threads: dict[Text, Latency] = Field(default_factory=dict)
    speedup: Above0 | None
    speedup_p10: Above0 | None = None
    speedup_p90: Above0 | None = None
    speedup_missing: Text | None = None
    pruning: Pruning | None = None
    sparsity: Share | None = None
    weights: Weights | None = None
    confusion: dict[Text, Confusion] | None = None
    confusion_missing: Text | None = OLDER
    changes: dict[Text, Changes] | None = None
    layers: tuple[LayerWidth, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    budgets: tuple[Budget, ...]
    passed: bool

    @property
    def sound(self) -> bool:
        """Whether it answers as its program, on this machine and wherever else it was run."""
        return not self.misses

    @property
    def misses(self) -> tuple[str, ...]:
        """Each gate that it does not pass, in words."""
        there = (f"{cpu.cpu}: {miss}" for cpu in self.arm64 for miss in cpu.misses)
        return (*self.parity.misses, *there)

    @property
    def device_misses(self) -> tuple[str, ...]:
        """Devices and units that it must not run on, since golden answers are off there."""
        return tuple(
            f"{found.device.name}, {check.unit}: a golden answer is {check.largest:.4g} off "
            f"(at most {check.tolerance:.4g})"
            for found in self.devices
            for check in found.files[0].golden
            if check.passed is False
        )

    @property
    def size_mb(self) -> float:
        """The size of the file in units of 1e6 bytes."""
        return self.size_bytes / 1e6

    @property
    def download_mb(self) -> float:
        """The size of the file as it is sent, in units of 1e6 bytes."""
        return self.download_bytes / 1e6

    @property
    def latency_share(self) -> float | None:
        """The file's time as a share of the unpruned network's; None where it was not asked for."""
        return None if self.pruning is None else self.pruning.reached_share

    @property
    def device_latency_ms(self) -> float | None:
        """The file's time on the slowest device, on what is fastest there; None without any."""
        fastest = [
            min(timing.typical_ms for timing in found.files[0].timings)
            for found in self.devices
            if found.files[0].timings
        ]
        return max(fastest, default=None)

    def figure(self, metric: Metric) -> float | None:
        """What a budget of `metric` judges."""
        if metric == "latency_ms":
            return None if self.latency_ms is None else self.latency_ms.median
        found: float | None = getattr(self, metric)
        return found

    @model_validator(mode="after")
    def _judged(self) -> Self:
        for item in self.budgets:
            figure = self.figure(item.metric)
            if item.value != figure:
                raise ValueError(f"budgets: {item.metric} judges {item.value}, not {figure}")
        if self.passed is not all_met(self.budgets):
            raise ValueError(f"passed: got {self.passed}, against the budgets")
        sent = {one.compressor: one.bytes for one in self.downloads}
        if self.downloads and sent.get("deflate") != self.download_bytes:
            raise ValueError(f"{self.name}: download_bytes must be deflate's of downloads")
        for there in self.devices:
            if [file.sha256 for file in there.files] != [self.sha256]:
                raise ValueError(f"devices: {there.device.name} ran another file, by its SHA-256")
        refuse_other_counts(self.name, self.accuracy, self.confusion)
        if self.confusion is not None and self.changes is None:
            raise ValueError(f"{self.name}: give changes beside confusion")
        for name, found in (self.changes or {}).items():
            if not self._fits(name, found):
                raise ValueError(f"{self.name}: changes of {name!r} do not fit its confusion")
        return self

    def _fits(self, name: str, found: Changes) -> bool:
        """Whether changes are of the images that were counted, or at least of as many."""
        if self.confusion is None:
            tested = (self.accuracy or {}).get(name)
            return tested is not None and tested.images == found.images
        counted, after = self.confusion.get(name), found.kept + found.gained
        return counted is not None and (found.images, after) == (counted.images, counted.right)


class Report(MeasuredRecord):
    """Everything one run found out, or several runs of the same float model.

    Attributes:
        baseline: what accuracy and size are compared with.
        float_cpu: the float model on this machine's CPU, what speed is compared with.
    """

    schema_version: Literal[1] = 1
    recipe: RecipeInfo
    code: CodeInfo
    host: HostInfo
    tools: dict[Text, Text]
    model: ModelInfo
    data: DataInfo
    baseline: Baseline
    float_cpu: Baseline
    stages: tuple[StageRecord, ...]
    targets: Annotated[tuple[TargetResult, ...], Field(min_length=1)]
    passed: bool

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.float_cpu.device_kind != "cpu":
            raise ValueError("float_cpu: device_kind must be cpu")
        tested = {name: found.images for name, found in self.baseline.accuracy.items()}
        if tested != self.data.test_sets:
            raise ValueError(f"baseline: tested on {tested}, but data has {self.data.test_sets}")
        names = [target.name for target in self.targets]
        if len(set(names)) < len(names):
            raise ValueError(f"targets: names must differ, got {', '.join(names)}")
        for target in self.targets:
            drop = accuracy_drop_pt(self.baseline.accuracy, target.accuracy)
            if target.accuracy_drop_pt != drop:
                raise ValueError(f"{target.name}: accuracy_drop_pt must be {drop}, by accuracy")
            for name, found in (target.changes or {}).items():
                if target.confusion is None:
                    continue
                before = (self.baseline.confusion or {}).get(name)
                if before is None or found.kept + found.lost != before.right:
                    raise ValueError(f"{target.name}: changes of {name!r} do not fit the baseline")
        if self.passed is not all(target.passed for target in self.targets):
            raise ValueError(f"passed: got {self.passed}, against the targets")
        return self
