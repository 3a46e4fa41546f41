"""What a run measured: the types of report.json, and the figures that follow from others.

    latency = latency_of([20.9, 21.3, 23.0], threads=1, batch=1)
    speedup(float_latency, latency)  # 4.01

A figure that could not be measured is None and has its reason beside it; a record with neither,
with both, or that contradicts itself cannot be made. Shares are 0..1, a megabyte is 1e6 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.details import (
    Changes,
    Confusion,
    Count,
    Epoch,
    LayerWidth,
    Positive,
    Record,
    Share,
    Text,
)

Metric = Literal["accuracy_drop_pt", "size_mb", "speedup", "latency_ms", "latency_share"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Above0 = Annotated[float, Field(gt=0)]
UtcTime = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
"""Such as 2026-11-21T14:05:00Z; in the order of the text they are in the order of time."""

_DECILES = {"p10": 1, "median": 5, "p90": 9}
_REASONS = {
    "accuracy": "accuracy_missing",
    "accuracy_drop_pt": "accuracy_missing",
    "agreement": "accuracy_missing",
    "scales_exact": "scales_missing",
    "int8_coverage": "coverage_missing",
    "partitions": "partitions_missing",
    "latency_ms": "latency_missing",
    "speedup": "speedup_missing",
    "confusion": "confusion_missing",
    "changes": "confusion_missing",
    "value": "missing",
    "reached": "reached_missing",
}


COMBINED = "combined"
"""Name of the report of several recipes, and of the directory that holds it."""
BASELINES = "baselines"
"""Name of the folder, beside those of the runs, of float networks measured on some machine."""

_OLDER = "the report is of a PocketNest that did not record it"


class _Record(Record):
    @model_validator(mode="after")
    def _figure_or_reason(self) -> Self:
        fields = dict(self)
        for figure, reason in _REASONS.items():
            paired = figure in fields and reason in fields
            if paired and (fields[figure] is None) == (fields[reason] is None):
                raise ValueError(f"give {figure} or {reason}, the reason why not, and not both")
        return self


class Accuracy(_Record):
    """Shares of `images` test images whose class was the first, or among the first five, named."""

    top1: Share
    top5: Share
    images: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.top5 < self.top1:
            raise ValueError(f"top5: got {self.top5:g}; must be >= top1, which is {self.top1:g}")
        return self


class Latency(_Record):
    """Milliseconds of one call on `batch` images; `latency_of` makes it from its samples."""

    median: Above0
    p10: Above0
    p90: Above0
    runs: Positive
    threads: Positive
    batch: Positive
    samples_ms: tuple[Above0, ...]

    @model_validator(mode="after")
    def _of_its_samples(self) -> Self:
        if self.runs != len(self.samples_ms):
            raise ValueError(f"runs: got {self.runs}, but there are {len(self.samples_ms)} samples")
        for name, tenths in _DECILES.items():
            if getattr(self, name) != _decile(self.samples_ms, tenths):
                raise ValueError(f"{name}: is not that of samples_ms; make it with latency_of")
        return self


def _decile(samples: Sequence[float], tenths: int) -> float:
    """Interpolate between neighbours so that deciles stay in order: no rounding past either."""
    ordered, last = sorted(samples), len(samples) - 1
    index, rest = divmod(tenths * last, 10)
    low, high = ordered[index], ordered[min(index + 1, last)]
    return low + (high - low) * (rest / 10)


def latency_of(samples_ms: Sequence[float], threads: int, batch: int) -> Latency:
    """Sum up timed runs, in the order they were taken, of `batch` images on `threads` threads.

    Raises:
        ValueError: without samples, or when one is not a finite number above 0.
    """
    if not samples_ms or not all(0 < sample < math.inf for sample in samples_ms):
        raise ValueError(f"runs of {list(samples_ms)} ms; give at least 1, each finite and above 0")
    return Latency(
        **{name: _decile(samples_ms, tenths) for name, tenths in _DECILES.items()},
        runs=len(samples_ms),
        threads=threads,
        batch=batch,
        samples_ms=tuple(samples_ms),
    )


class RecipeInfo(_Record):
    """The recipe; for a report of several, `combined` and the hash of their hashes."""

    name: Text
    sha256: Sha256


class CodeInfo(_Record):
    """The PocketNest that ran; `commit` is None outside a git checkout."""

    version: Text
    commit: Text | None


class HostInfo(_Record):
    """The machine that ran; `gpu` is None where there is none."""

    cpu: Text
    cores: Positive
    gpu: Text | None


class ModelInfo(_Record):
    """The float baseline's network; `macs` are multiply-accumulates of one image."""

    name: Text
    block: Literal["bottleneck", "basic"]
    input_shape: Annotated[tuple[Positive, ...], Field(min_length=1)]
    num_classes: Positive
    params: Count
    macs: Count


class DataInfo(_Record):
    """The images; `test_sets` holds the number of images of each, `classes` names, in order."""

    name: Text
    sha256: Sha256
    train_images: Count
    test_sets: Annotated[dict[Text, Positive], Field(min_length=1)]
    classes: tuple[str, ...] = ()


def _refuse_other_counts(
    name: str, accuracy: Mapping[str, Accuracy] | None, confusion: Mapping[str, Confusion] | None
) -> None:
    """Refuse classes that were counted on other images than the accuracy."""
    if confusion is None:
        return
    counted = {key: (found.images, found.right / found.images) for key, found in confusion.items()}
    measured = {key: (found.images, found.top1) for key, found in (accuracy or {}).items()}
    if counted != measured:
        raise ValueError(f"{name}: confusion gives {counted}, but accuracy {measured}")


class Origin(_Record):
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


class Baseline(_Record):
    """The float model on one device; `measured_here` is False for figures of another machine.

    `latency_by_threads` holds further timings, by number of CPU threads; `confusion` which classes
    were named, by test set; `origin` where figures of another machine are from, None in reports
    of a PocketNest that did not record it.
    """

    device: Text
    device_kind: Literal["gpu", "cpu"]
    measured_here: bool
    accuracy: Annotated[dict[Text, Accuracy], Field(min_length=1)]
    latency_ms: Latency | None
    latency_missing: Text | None = None
    latency_by_threads: dict[Text, Latency] = Field(default_factory=dict)
    size_bytes: Positive
    confusion: dict[Text, Confusion] | None = None
    confusion_missing: Text | None = _OLDER
    origin: Origin | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _refuse_other_counts("baseline", self.accuracy, self.confusion)
        if self.measured_here and self.origin is not None:
            raise ValueError("origin: is of figures of another machine, but measured_here is True")
        return self


class StageRecord(_Record):
    """One stage of the run; a figure the stage does not measure is None.

    `curve` is that of a stage that trains.
    """

    name: Text
    status: Literal["done", "reused"]
    seconds: Annotated[float, Field(ge=0)]
    params: Count | None = None
    macs: Count | None = None
    top1: Share | None = None
    curve: tuple[Epoch, ...] = ()


class ScalesExact(_Record):
    """How many of the file's quantization scales are exactly the learned ones."""

    same: Count
    total: Positive

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.same > self.total:
            raise ValueError(f"same: got {self.same}; must be <= total, which is {self.total}")
        return self


class OutputSteps(_Record):
    """How far logits are from the program's, in steps of their int8 grid.

    `median` and `p99` are percentiles over all logits of all images, `largest` is the largest,
    and `differing` the share that differ at all.
    """

    median: Count
    p99: Count
    largest: Count
    differing: Share


class Parity(_Record):
    """Whether a file answers as the program it was written from.

    Attributes:
        images: calibration and test images that both answered.
        agreement: share of them with the same top-1.
        steps: how far the logits are apart; None for a float file.
        difference: of a float file, the 99th percentile of the logits' differences, as a share
            of the largest logit.
        rounding: of an int8 file, how far the program's own logits move on the calibration images
            when its numbers are rounded otherwise; None where that was not measured.
        layers: layers of an int8 file that were compared one by one; 0 for a float file.
        layers_alike: those that make the same of the same numbers, but for rounding.
        misses: each gate that the file does not pass, in words.
        first_difference: the first layer that differs, where there is a miss.
        passed: whether there is no miss. A run stops at one unless --allow-mismatch is given.
    """

    images: Positive
    agreement: Share
    steps: OutputSteps | None
    difference: Annotated[float, Field(ge=0)] | None
    rounding: OutputSteps | None = None
    layers: Count
    layers_alike: Count
    misses: tuple[Text, ...] = ()
    first_difference: Text | None = None
    passed: bool

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if self.passed is bool(self.misses):
            raise ValueError(f"passed: got {self.passed}, with {len(self.misses)} misses")
        if (self.steps is None) == (self.difference is None):
            raise ValueError("give steps, for an int8 file, or difference, for a float one")
        if self.steps is None and self.rounding is not None:
            raise ValueError("rounding: a float file has no grid to count it on; leave it out")
        return self


class Budget(_Record):
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


def accuracy_drop_pt(
    baseline: Mapping[str, Accuracy], target: Mapping[str, Accuracy] | None
) -> float | None:
    """Percentage points of top-1 lost on the baseline's first test set; below 0 when gained.

    Raises:
        ValueError: when the target was not tested on the same images.
    """
    if target is None:
        return None
    name, before = next(iter(baseline.items()))
    after = target.get(name)
    if after is None or after.images != before.images:
        raise ValueError(f"test set {name!r}: got {after}; test the {before.images} images")
    # (0.98 - 0.97) * 100 is 1.0000000000000009: a budget of 1 point would fail by rounding.
    return round((before.top1 - after.top1) * 100, 9)


def speedup(float_cpu: Latency | None, target: Latency | None) -> float | None:
    """How many times faster the target is: float median / target median, None if one is missing.

    Raises:
        ValueError: when threads or batch differ, so that the ratio would not say what it claims.
    """
    if float_cpu is None or target is None:
        return None
    ours, theirs = (f"{item.threads} threads, batch {item.batch}" for item in (target, float_cpu))
    if ours != theirs:
        raise ValueError(f"{ours}, but the float model {theirs}; time both alike")
    return float_cpu.median / target.median


class Pruning(_Record):
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

    @property
    def prediction_error(self) -> float | None:
        """(predicted - reached) / reached."""
        return None if self.reached is None else self.predicted / self.reached - 1


class TargetResult(_Record):
    """One exported file, judged by running it.

    Attributes:
        path: of the file, from the folder of the report.
        download_bytes: its size compressed, as an app store sends it.
        accuracy_missing: why there is no `accuracy`, `accuracy_drop_pt` and `agreement`.
        input: what the file takes: normalised float32, or 8-bit RGB pixels.
        evaluated: by the format's own runtime, or by the reference evaluator.
        agreement: share of test images with the same top-1 as the program it was written from.
        parity: the gates, over calibration and test images.
        int8_coverage: share of multiply-accumulates that run in int8 kernels.
        partitions: parts of the graph that LiteRT gives to XNNPACK; 1 is the whole graph.
        latency_by_threads: further timings, by number of CPU threads.
        speedup: median latency of the float model, timed in turn with this file, over this one's.
        pruning: None where no channels were pruned.
        sparsity: share of the weights that were set to zero; None where none were.
        confusion: which classes the file named, by test set.
        changes: what became of the images from the float model to the file, by test set.
        layers: widths before and after pruning.
        stages: that this file came of, in order.
    """

    name: Text
    device: Text
    format: Literal["onnx", "tflite", "coreml"]
    precision: Literal["int8", "float"]
    runtime: Text
    input: Literal["normalized", "uint8_rgb"]
    evaluated: Literal["runtime", "reference"]
    path: Text
    sha256: Sha256
    size_bytes: Positive
    download_bytes: Positive
    accuracy: Annotated[dict[Text, Accuracy], Field(min_length=1)] | None
    accuracy_missing: Text | None = None
    accuracy_drop_pt: float | None
    agreement: Share | None
    parity: Parity
    scales_exact: ScalesExact | None
    scales_missing: Text | None = None
    int8_coverage: Share | None
    coverage_missing: Text | None = None
    ops: dict[Text, Positive]
    partitions: Count | None
    partitions_missing: Text | None = None
    latency_ms: Latency | None
    latency_missing: Text | None = None
    latency_by_threads: dict[Text, Latency] = Field(default_factory=dict)
    speedup: Above0 | None
    speedup_missing: Text | None = None
    pruning: Pruning | None = None
    sparsity: Share | None = None
    confusion: dict[Text, Confusion] | None = None
    confusion_missing: Text | None = _OLDER
    changes: dict[Text, Changes] | None = None
    layers: tuple[LayerWidth, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    budgets: tuple[Budget, ...]
    passed: bool

    @property
    def size_mb(self) -> float:
        """The size of the file in units of 1e6 bytes."""
        return self.size_bytes / 1e6

    @property
    def latency_share(self) -> float | None:
        """The file's time as a share of the unpruned network's; None where it was not asked for."""
        return None if self.pruning is None else self.pruning.reached_share

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
        _refuse_other_counts(self.name, self.accuracy, self.confusion)
        for name, found in (self.changes or {}).items():
            after = found.kept + found.gained
            counted = None if self.confusion is None else self.confusion.get(name)
            if counted is None or (found.images, after) != (counted.images, counted.right):
                raise ValueError(f"{self.name}: changes of {name!r} do not fit its confusion")
        return self


class Report(_Record):
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
                before = (self.baseline.confusion or {}).get(name)
                if before is None or found.kept + found.lost != before.right:
                    raise ValueError(f"{target.name}: changes of {name!r} do not fit the baseline")
        if self.passed is not all(target.passed for target in self.targets):
            raise ValueError(f"passed: got {self.passed}, against the targets")
        return self
