"""What was measured on real devices: the types of device.json, and of a report's rows.

    timing = timing_of("cpu", [20.9, 21.3, 23.0], threads=2)
    timing.typical_ms  # 21.3, the median

A phone over adb, a Mac over ssh and files of device services all give this one record. What a
source does not tell is None and never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.machine import CodeInfo, HostInfo
from pipeline.base.record import Above0, Count, MeasuredRecord, Positive, Sha256, Text, UtcTime
from pipeline.formats.formats import FormatName
from pipeline.measure.latency import latency_of

DEVICE = "device.json"
"""Name of the file."""
Unit = Annotated[str, Field(pattern=r"^[a-z0-9]+(\+[a-z0-9]+)*$")]
"""What computes: cpu, gpu, npu, ne (Apple's Neural Engine); several as cpu+ne."""


class Source(MeasuredRecord):
    """How the measurements were got.

    Attributes:
        kind: over adb, on a Mac, or from a file of another's making.
        tool: what ran or wrote them: `benchmark_model`, `Qualcomm AI Hub`.
        version: of that tool; None where it does not say.
        file: name of the file that was imported; None of the other kinds.
    """

    kind: Literal["adb", "apple", "imported"]
    tool: Text
    version: Text | None = None
    file: Text | None = None

    @model_validator(mode="after")
    def _of_a_file(self) -> Self:
        if (self.kind == "imported") != (self.file is not None):
            raise ValueError("file: give it where kind is imported, and only there")
        return self


class Device(MeasuredRecord):
    """The machine that computed. What is not known of it is None.

    Attributes:
        name: for people: `Google Pixel 8`.
        model: as the maker writes it: `GKWS6`, `Mac15,3`.
        soc: the chip: `Tensor G3`, `Apple M3`.
        os: `Android`, `macOS`, `iOS`.
        os_version: `15`.
        abi: of its programs: `arm64-v8a`.
        page_size: of memory, in bytes.
        cores: of the CPU.
        identity: tells two devices of one model apart and does not say their serial number: the
            first 12 hexadecimal digits of its SHA-256.
    """

    name: Text
    model: Text | None = None
    soc: Text | None = None
    os: Text | None = None
    os_version: Text | None = None
    abi: Text | None = None
    page_size: Positive | None = None
    cores: Positive | None = None
    identity: Text | None = None


class Conditions(MeasuredRecord):
    """The state of a device at one moment.

    Attributes:
        thermal: as the system names it: `none`, `light`, `moderate`, `severe`, `critical`, or
            `nominal`, `fair`, `serious` on Apple's.
        battery_percent: charge of the battery.
        battery_celsius: its temperature.
        powered: whether a charger or USB feeds it.
    """

    thermal: Text | None = None
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    battery_celsius: float | None = None
    powered: bool | None = None


class GoldenCheck(MeasuredRecord):
    """Whether a file answers the golden images on the device as it should, on one unit.

    Attributes:
        unit: that was asked to compute.
        images: that were run.
        tolerance: most that an answer may be off; None where nothing was checked.
        largest: difference that was seen; None where nothing was checked.
        passed: None where nothing was checked.
        missing: why nothing was.
    """

    unit: Unit
    images: Count
    tolerance: Annotated[float, Field(ge=0)] | None = None
    largest: Annotated[float, Field(ge=0)] | None = None
    passed: bool | None = None
    missing: Text | None = None

    @model_validator(mode="after")
    def _judged(self) -> Self:
        if (self.passed is None) == (self.missing is None):
            raise ValueError("give passed or missing, the reason why not, and not both")
        if self.passed is None:
            return self
        if self.tolerance is None or self.largest is None or not self.images:
            raise ValueError("give images, tolerance and largest beside passed")
        if self.passed is not (self.largest <= self.tolerance):
            raise ValueError(f"passed: got {self.passed}, against largest and tolerance")
        return self


class Timing(MeasuredRecord):
    """How long one inference of one image takes, on one unit; `timing_of` makes it of samples.

    Attributes:
        unit: that was asked to compute.
        threads: of the CPU; None where the unit has none, or the source does not say.
        samples_ms: in the order they were taken; empty where the source gives sums alone.
        runs_per_sample: inferences that a sample is the mean of.
        runs: inferences in all; None where the source does not say.
        median_ms: over the samples, or as the source gives it.
        mean_ms: over all inferences, as the source gives it.
        p10_ms: a tenth of the samples took less.
        p90_ms: a tenth of the samples took more.
        min_ms: of the fastest inference that is known.
        max_ms: of the slowest.
        delegate: that was asked for by the tool's name; None where none was.
        delegated: how much of the graph the delegate took; None where that is not known.
        fell_back: why work did not run, or not all of it, on the unit; None where it did.
        load_ms: to open the file, until it can be given an image.
        first_ms: of the first inference.
        peak_mb: memory of the process at its most, in units of 1e6 bytes.
        before: the device before the first sample.
        after: and after the last one.
    """

    unit: Unit
    threads: Positive | None = None
    samples_ms: tuple[Above0, ...] = ()
    runs_per_sample: Positive = 1
    runs: Positive | None = None
    median_ms: Above0 | None = None
    mean_ms: Above0 | None = None
    p10_ms: Above0 | None = None
    p90_ms: Above0 | None = None
    min_ms: Above0 | None = None
    max_ms: Above0 | None = None
    delegate: Text | None = None
    delegated: Literal["all", "part", "none"] | None = None
    fell_back: Text | None = None
    load_ms: Above0 | None = None
    first_ms: Above0 | None = None
    peak_mb: Above0 | None = None
    before: Conditions | None = None
    after: Conditions | None = None

    @property
    def typical_ms(self) -> float:
        """The median, or the mean where the source gives no median."""
        found = self.mean_ms if self.median_ms is None else self.median_ms
        assert found is not None  # `_consistent` refuses a record with neither
        return found

    @property
    def typical(self) -> Literal["median", "mean"]:
        """What `typical_ms` is."""
        return "mean" if self.median_ms is None else "median"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.median_ms is None and self.mean_ms is None:
            raise ValueError("give median_ms or mean_ms: a timing needs one of them")
        if self.samples_ms:
            found = latency_of(self.samples_ms, threads=1, batch=1)
            if (self.p10_ms, self.median_ms, self.p90_ms) != (found.p10, found.median, found.p90):
                raise ValueError("p10_ms, median_ms, p90_ms: make them with timing_of")
        return self


def timing_of(unit: str, samples_ms: Sequence[float], **others: Any) -> Timing:
    """Sum up samples, in the order they were taken.

    Args:
        unit: that computed.
        samples_ms: one at least, each finite and above 0.
        others: further fields of `Timing`.

    Raises:
        ValueError: without samples, or when one is not a finite number above 0.
    """
    found = latency_of(samples_ms, threads=1, batch=1)
    mean = math.fsum(samples_ms) / len(samples_ms)
    sums = {"p10_ms": found.p10, "median_ms": found.median, "p90_ms": found.p90, "mean_ms": mean}
    return Timing(unit=unit, samples_ms=tuple(samples_ms), **(sums | others))


class LayerTime(MeasuredRecord):
    """How long one operation takes on the device.

    Attributes:
        name: of the operation, as the tool gives it.
        operation: its kind; None where the tool does not say.
        unit: that it ran on; None where the tool does not say.
        ms: of one inference, on average; None where only the unit is known.
    """

    name: Text
    operation: Text | None = None
    unit: Unit | None = None
    ms: Annotated[float, Field(ge=0)] | None = None


class FileOnDevice(MeasuredRecord):
    """One file on a device.

    Attributes:
        name: of the target, or of the file where no run is known.
        format: of the file; None where an import does not say.
        precision: of its weights; None where an import does not say.
        sha256: of the bytes on the device, of a package that of names and contents; None where an
            import does not say. Only a file of a run's SHA-256 is shown in that run's report.
        runtime: such as `litert`; None where it is not known.
        runtime_version: of the device's runtime; None where it is not known.
        golden: the check on each unit, made before anything was timed.
        timings: by unit and threads; none where a check was missed.
        layers: in the order of computation; none where they are not known.
    """

    name: Text
    format: FormatName | None
    precision: Literal["int8", "float"] | None
    sha256: Sha256 | None
    runtime: Text | None
    runtime_version: Text | None = None
    golden: Annotated[tuple[GoldenCheck, ...], Field(min_length=1)]
    timings: tuple[Timing, ...] = ()
    layers: tuple[LayerTime, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether no golden check was missed."""
        return all(check.passed is not False for check in self.golden)

    def timed(self, unit: str, threads: int | None) -> Timing | None:
        """The timing on a unit with so many threads; None where there is none."""
        found = (t for t in self.timings if (t.unit, t.threads) == (unit, threads))
        return next(found, None)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        timed = [(timing.unit, timing.threads) for timing in self.timings]
        checked = [check.unit for check in self.golden]
        if len(set(timed)) < len(timed) or len(set(checked)) < len(checked):
            raise ValueError("timings, golden: each unit, with its threads, may stand once")
        return self


class RawOutput(MeasuredRecord):
    """What a tool said, as it said it.

    Attributes:
        name: what was run, or the file that was read.
        text: all of it; where it is no text, in base64.
        encoding: of `text`.
    """

    name: Text
    text: str
    encoding: Literal["text", "base64"] = "text"


class OnDevice(MeasuredRecord):
    """Files on one device, in one go: they took turns where there are several.

    Attributes:
        measured_at: when; of an import that does not say, when it was read.
        source: how it was got.
        device: that computed.
        before: its state before anything ran.
        after: and at the end.
        files: that ran.
        notes: what else there is to say, such as what could not be removed from the device.
        raw: what the tools said.
    """

    measured_at: UtcTime
    source: Source
    device: Device
    before: Conditions = Conditions()
    after: Conditions = Conditions()
    files: Annotated[tuple[FileOnDevice, ...], Field(min_length=1)]
    notes: tuple[Text, ...] = ()
    raw: tuple[RawOutput, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether no golden check was missed."""
        return all(file.sound for file in self.files)

    def only(self, sha256: str) -> OnDevice | None:
        """The same with the file of a SHA-256 alone; None where it is of other files."""
        files = tuple(file for file in self.files if file.sha256 == sha256)
        return self.model_copy(update={"files": files}) if files else None

    @property
    def bare(self) -> OnDevice:
        """The same without what the tools said, for a report."""
        return self.model_copy(update={"raw": ()})


class DeviceRecord(MeasuredRecord):
    """The content of device.json.

    Attributes:
        code: the PocketNest that wrote it.
        host: the machine that it ran on; no figure here is that machine's.
        machines: each device, with how it was measured; the newest last.
    """

    schema_version: Literal[1] = 1
    code: CodeInfo
    host: HostInfo
    machines: Annotated[tuple[OnDevice, ...], Field(min_length=1)]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of device.json, shipped as device.schema.json beside this module."""
    schema = DeviceRecord.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
