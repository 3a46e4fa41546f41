"""What `pocketnest arm64` found out: the types of arm64.json, and of a report's rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.machine import CodeInfo, HostInfo
from pipeline.base.record import Count, MeasuredRecord, Positive, Sha256, Text, UtcTime
from pipeline.formats.formats import FormatName
from pipeline.measure.parity_record import OutputSteps

ARM64 = "arm64.json"
"""Name of the file."""


class FirstLayer(MeasuredRecord):
    """A layer that is the first of an image's layers to differ from this machine's.

    All layers before it are the same, so that it alone computed otherwise.

    Attributes:
        name: of the layer's tensor in program and file.
        module: of the network, that makes it; None where that is not known.
        images: whose first it is, of those that were traced.
        values: of those images that differ in it.
        steps: of the layer's grid, the most by which they do.
    """

    name: Text
    module: Text | None
    images: Positive
    values: Positive
    steps: Positive


class CountedLayer(MeasuredRecord):
    """One operation of a file, counted by itself, as a file of its own.

    Attributes:
        name: of the tensor that it makes.
        module: of the network, that makes it; None where that is not known.
        operation: of the file, with its window: `CONV_2D 3x3`.
        macs: multiply-accumulates.
        instructions: without what every call of the runtime takes.
    """

    name: Text
    module: Text | None
    operation: Text
    macs: Count
    instructions: Count


class Counted(MeasuredRecord):
    """Instructions of one inference on one thread: exact, emulated, and not a time.

    Attributes:
        total: all of them.
        products: those that multiply int8 numbers.
        macs: multiply-accumulates of the file.
        least: the instructions that these alone would take.
        call: what each call of the runtime takes, by which the layers' sum is more than the total.
        layers: in the order of the file; none of a format whose files are not cut.
    """

    total: Positive
    products: Count
    macs: Count
    least: Count
    call: Count = 0
    layers: tuple[CountedLayer, ...] = ()

    @property
    def share(self) -> float:
        """The least as a share of the total."""
        return self.least / self.total


class OnCpu(MeasuredRecord):
    """A file's answers on one emulated processor.

    Attributes:
        cpu: as QEMU names it.
        images: that were run.
        same: those whose answers are this machine's, bit for bit.
        steps: from this machine's answers; None for a float file.
        difference: of a float file, the 99th percentile of the difference from this machine's
            answers as a share of the largest.
        program: steps from the quantized program's answers.
        program_missing: why there are none.
        traced: images whose layers were compared; those whose answers differ come first.
        layers: of an int8 file that were compared.
        layers_alike: those whose numbers are this machine's, all of them.
        first: where the images' layers begin to differ, in the order of computation.
        otherwise: layers that make other numbers of the same numbers than the program does, beyond
            those that lie in the middle between two steps; None without the program.
        at_fault: those of them that do so beyond rounding; a gate of every file.
        instructions: of one inference; None where they were not counted.
        instructions_missing: why not.
        misses: what is not as it must be, in words. A run whose recipe has `verify.arm64` stops at
            one.
    """

    cpu: Text
    images: Positive
    same: Count
    steps: OutputSteps | None
    difference: Annotated[float, Field(ge=0)] | None
    program: OutputSteps | None
    program_missing: Text | None = None
    traced: Count
    layers: Count
    layers_alike: Count
    first: tuple[FirstLayer, ...] = ()
    otherwise: Count | None = None
    at_fault: Count | None = None
    instructions: Counted | None = None
    instructions_missing: Text | None = None
    misses: tuple[Text, ...] = ()

    @property
    def alike(self) -> bool:
        """Whether every answer is this machine's; of a float file, but for rounding."""
        if self.steps is None:
            return not self.misses
        return self.same == self.images

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.steps is None) == (self.difference is None):
            raise ValueError("give steps, for an int8 file, or difference, for a float one")
        if (self.program is None) == (self.program_missing is None):
            raise ValueError("give program or program_missing, the reason why not, and not both")
        if self.same > self.images or self.layers_alike > self.layers:
            raise ValueError("no more can be the same than were compared")
        return self


class FileOnArm64(MeasuredRecord):
    """One exported file on all processors that were asked for."""

    name: Text
    format: FormatName
    precision: Literal["int8", "float"]
    runtime: Text
    sha256: Sha256
    cpus: Annotated[tuple[OnCpu, ...], Field(min_length=1)]


class Arm64(MeasuredRecord):
    """All files of one call.

    Attributes:
        emulator: such as QEMU 7.2.
        packages: what the emulated machine is made of, versions by name.
        not_run: files that cannot run there, and why.
        alike: whether every answer is this machine's.
    """

    schema_version: Literal[1] = 1
    measured_at: UtcTime
    code: CodeInfo
    host: HostInfo
    emulator: Text
    packages: dict[Text, Text]
    files: Annotated[tuple[FileOnArm64, ...], Field(min_length=1)]
    not_run: dict[Text, Text] = Field(default_factory=dict)
    alike: bool

    @model_validator(mode="after")
    def _judged(self) -> Self:
        found = all(cpu.alike for file in self.files for cpu in file.cpus)
        if self.alike is not found:
            raise ValueError(f"alike: got {self.alike}, against the files")
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of arm64.json, shipped as arm64.schema.json beside this module."""
    schema = Arm64.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
