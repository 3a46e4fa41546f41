"""A run's files on a phone: golden images first, then times, float and int8 in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.machine import utc_now
from pipeline.formats.ports import Interface
from pipeline.measure.device import benchmark_model
from pipeline.measure.device.benchmark_model import Printed
from pipeline.measure.device.record import (
    Conditions,
    FileOnDevice,
    GoldenCheck,
    LayerTime,
    OnDevice,
    RawOutput,
    Source,
    Timing,
    timing_of,
)
from pipeline.measure.lanes.adb import runner, state
from pipeline.measure.lanes.adb.adb import Adb
from pipeline.measure.lanes.adb.folder import Folder
from pipeline.measure.lanes.adb.runner import RUNNER, RunnerFailed

THREADS = (1, 2, 4)
ROUNDS, RUNS, WARMUP = 10, 20, 3
_RUN_SECONDS = 600.0
Tell = Callable[[str], object]
Advance = Callable[[int, str], object]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file that is to run on the phone.

    Attributes:
        name: of its target.
        path: of the file.
        format: of `FORMATS`.
        precision: int8 or float.
        runtime: as records name it.
        interface: what it takes and gives.
        inputs: as the file takes them (images, ...), the golden ones.
        answers: that it should give to them, float32 (images, ...).
        tolerance: most that one may be off.
    """

    name: str
    path: Path
    format: str
    precision: Literal["int8", "float"]
    runtime: str
    interface: Interface
    inputs: NDArray[np.generic]
    answers: NDArray[np.float32]
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done.

    Attributes:
        files: that run, under different names; they take turns.
        runner: the program that runs them.
        units: of `runner.UNITS`.
        rounds: in each of which every file is timed once.
        rest: seconds between two groups of timings.
        cool: seconds that are waited, at most, for a hot phone before each round.
    """

    files: tuple[Wanted, ...]
    runner: Path
    units: tuple[str, ...]
    rounds: int = ROUNDS
    rest: float = 5.0
    cool: float = 300.0

    @property
    def groups(self) -> tuple[tuple[str, int | None], ...]:
        """Unit and threads of each group of timings; only the CPU has threads."""
        cpu = [(unit, n) for unit in self.units if unit == "cpu" for n in THREADS]
        return (*cpu, *((unit, None) for unit in self.units if unit != "cpu"))

    @property
    def steps(self) -> int:
        """Calls of the runner."""
        checks = sum(len(file.inputs) for file in self.files) * len(self.units)
        operations = len(self.files) if "cpu" in self.units else 0
        return checks + len(self.groups) * self.rounds * len(self.files) + operations


class _Measuring:
    """The files on one phone; `measured` is what uses it."""

    def __init__(self, phone: Adb, folder: Folder, plan: Plan, advance: Advance) -> None:
        self._phone, self._folder, self._plan, self._advance = phone, folder, plan, advance
        self._done = 0
        self.raw: list[RawOutput] = []
        self.notes: list[str] = []
        self.hashes: dict[str, str] = {}

    def push(self) -> None:
        """Copy the runner and the files, and read their hashes back."""
        sha256 = self._folder.push(self._plan.runner, RUNNER, program=True)
        self.notes.append(f"runner {self._plan.runner.name}, SHA-256 {sha256[:12]}")
        for number, file in enumerate(self._plan.files):
            self._advance(self._done, f"copying {file.name}")
            self.hashes[file.name] = self._folder.push(file.path, self._remote(number))

    def _remote(self, number: int) -> str:
        return f"model{number}{self._plan.files[number].path.suffix}"

    def checked(self) -> dict[str, tuple[GoldenCheck, ...]]:
        """The golden images of every file on every unit, by the file's name."""
        return {
            file.name: tuple(self._golden(number, file, unit) for unit in self._plan.units)
            for number, file in enumerate(self._plan.files)
        }

    def _golden(self, number: int, file: Wanted, unit: str) -> GoldenCheck:
        try:
            with TemporaryDirectory() as scratch:
                found = [
                    self._answer(number, file, unit, row, Path(scratch))
                    for row in range(len(file.inputs))
                ]
        except RunnerFailed as error:
            if unit == "cpu":
                raise
            # A phone's GPU may refuse a file; its CPU is measured all the same.
            return GoldenCheck(unit=unit, images=0, missing=str(error))
        apart = np.abs(np.stack(found) - file.answers.reshape(len(found), -1))
        # A NaN is as far off as can be: no comparison with it holds.
        largest = float(np.where(np.isfinite(apart), apart, np.finfo(np.float32).max).max())
        return GoldenCheck(
            unit=unit,
            images=len(found),
            tolerance=file.tolerance,
            largest=largest,
            passed=largest <= file.tolerance,
        )

    def _answer(
        self, number: int, file: Wanted, unit: str, row: int, scratch: Path
    ) -> NDArray[np.float32]:
        """What the file answers to one image there."""
        folder, image = self._folder, f"{number}-{row}.bin"
        local = scratch / image
        local.write_bytes(np.ascontiguousarray(file.inputs[row]).tobytes())
        folder.push(local, image)
        shape = [size or 1 for size in file.interface.input.shape]
        words = runner.golden_words(
            folder.path, self._remote(number), unit, shape, image, "answer.bin"
        )
        printed = self._ran(f"golden image {row} of {file.name} on {unit}", words)
        if (missing := runner.too_old(printed)) is not None:
            raise InputError(f"{self._plan.runner}: {missing}")
        output = file.interface.output
        kind = np.dtype(output.dtype)
        size = kind.itemsize * file.answers[row].size
        content = self._phone.content(f"{folder.path}/answer.bin", size + 1)
        if len(content) != size:
            raise InputError(
                f"{file.name}: its answer on the phone has {len(content)} bytes and should have "
                f"{size}; is the phone's disk full, or the runner another than benchmark_model?"
            )
        self._phone.shell(f"rm -f {folder.path}/answer.bin {folder.path}/{image}")
        values = np.frombuffer(content, kind).astype(np.float32)
        if output.scale is None:
            return values
        return (values - np.float32(output.zero_point or 0)) * np.float32(output.scale)

    def _ran(self, what: str, words: str) -> Printed:
        """Run the tool to its end."""
        said = self._folder.run(words, _RUN_SECONDS)
        text = said.out + said.errors
        shown = words.replace(f"{self._folder.path}/", "")
        self.raw.append(RawOutput(name=f"{what}: {shown}", text=text))
        try:
            if said.status:
                raise ValueError(f"exit status {said.status}: {said.why}")
            found = benchmark_model.parsed(text)
        except ValueError as error:
            raise RunnerFailed(f"{what}: the runner failed on the phone: {error}") from error
        self._done += 1
        self._advance(self._done, what)
        return found

    def timed(self, checks: Mapping[str, Sequence[GoldenCheck]]) -> dict[str, list[Timing]]:
        """Times of every file that answers right on a unit, by its name."""
        found: dict[str, list[Timing]] = {file.name: [] for file in self._plan.files}
        for place, (unit, threads) in enumerate(self._plan.groups):
            if place:
                time.sleep(self._plan.rest)
            right = _right(checks, unit)
            for name, timing in self._in_turn(unit, threads, right):
                found[name].append(timing)
        return found

    def _in_turn(
        self, unit: str, threads: int | None, names: Collection[str]
    ) -> Iterator[tuple[str, Timing]]:
        """Times on one unit: the files take turns in every round."""
        files = [(n, file) for n, file in enumerate(self._plan.files) if file.name in names]
        before = state.conditions(self._phone)
        taken: dict[str, list[Printed]] = {file.name: [] for _, file in files}
        for _ in range(self._plan.rounds):
            self._cooled(unit, threads)
            for number, file in files:
                taken[file.name].append(self._one(number, file, unit, threads))
        after = state.conditions(self._phone)
        for name, printed in taken.items():
            yield name, _summed(unit, threads, printed, before, after)

    def _one(self, number: int, file: Wanted, unit: str, threads: int | None) -> Printed:
        words = runner.timing_words(
            self._folder.path, self._remote(number), unit, threads, runs=RUNS, warmup=WARMUP
        )
        return self._ran(f"times of {file.name} on {_group(unit, threads)}", words)

    def profiled(self) -> dict[str, tuple[LayerTime, ...]]:
        """How long each operation takes on one thread of the CPU, by the file's name.

        Apart from the times that count: to look at each operation takes time, too.
        """
        return {
            file.name: self._layers(number, file) for number, file in enumerate(self._plan.files)
        }

    def _layers(self, number: int, file: Wanted) -> tuple[LayerTime, ...]:
        words = runner.timing_words(
            self._folder.path, self._remote(number), "cpu", 1, runs=RUNS, warmup=1, profiled=True
        )
        try:
            self._ran(f"operations of {file.name} on cpu", words)
            return benchmark_model.layers(self.raw[-1].text)
        except (RunnerFailed, KeyError, ValueError) as error:
            # The times that count are taken: a tool of another form does not undo them.
            self.notes.append(f"{file.name}: operations not timed: {error}")
            return ()

    def _cooled(self, unit: str, threads: int | None) -> None:
        """Wait while the phone is hot; go on after some minutes, and say so."""
        began = time.monotonic()
        while state.hot(found := state.conditions(self._phone)):
            if time.monotonic() - began >= self._plan.cool:
                note = (
                    f"{_group(unit, threads)}: the phone did not cool down in "
                    f"{self._plan.cool:.0f} s (thermal state {found.thermal}): times are those of "
                    "a hot phone"
                )
                if note not in self.notes:
                    self.notes.append(note)
                return
            self._advance(self._done, f"waiting: the phone is hot ({found.thermal})")
            time.sleep(min(5.0, self._plan.cool))


def _group(unit: str, threads: int | None) -> str:
    return unit if threads is None else f"{unit}, {threads} thread{'s' if threads > 1 else ''}"


def _summed(
    unit: str,
    threads: int | None,
    printed: Sequence[Printed],
    before: Conditions,
    after: Conditions,
) -> Timing:
    last = printed[-1]
    taken = runner.delegation(last, unit)
    peaks = [one.peak_mb for one in printed if one.peak_mb is not None]
    firsts = [one.first_us for one in printed if one.first_us > 0]
    inits = [one.init_us for one in printed if one.init_us > 0]
    return timing_of(
        unit,
        [one.mean_us / 1e3 for one in printed],
        threads=threads,
        runs_per_sample=last.runs,
        runs=sum(one.runs for one in printed),
        min_ms=_above(min(one.min_us for one in printed)),
        max_ms=_above(max(one.max_us for one in printed)),
        delegate=runner.UNITS[unit].delegate,
        delegated=None if taken is None else taken.extent,
        fell_back=runner.fell_back(last, unit),
        load_ms=median(inits) / 1e3 if inits else None,
        first_ms=median(firsts) / 1e3 if firsts else None,
        peak_mb=max(peaks) if peaks else None,
        before=before,
        after=after,
    )


def _above(microseconds: float) -> float | None:
    """In milliseconds; None of what the tool's clock did not see."""
    return microseconds / 1e3 if microseconds > 0 else None


def measured(phone: Adb, plan: Plan, folder: Folder, advance: Advance) -> OnDevice:
    """Run the files on a phone: golden images first, and times only where all answers are right.

    Args:
        phone: that is connected.
        plan: what runs there.
        folder: of the phone, not opened yet.
        advance: told of the calls of the runner that are done.

    Raises:
        InputError: the runner or a file cannot be run there, or there is no room; `Disconnected`
            where the phone is gone. Nothing is left on it then, as far as it can be reached:
            `folder.left` says what could not be removed.
    """
    device = state.device(phone)
    runner.refuse_other_machine(plan.runner, device.abi)
    began, before = utc_now(), state.conditions(phone)
    with folder.open():
        measuring = _Measuring(phone, folder, plan, advance)
        measuring.push()
        checks = measuring.checked()
        missed = list(_missed(checks))
        timings: Mapping[str, Sequence[Timing]] = {} if missed else measuring.timed(checks)
        layers = measuring.profiled() if "cpu" in plan.units and not missed else {}
        after = state.conditions(phone)
    notes = measuring.notes + [f"not timed: {line}" for line in missed]
    files = tuple(
        FileOnDevice(
            name=file.name,
            format=file.format,
            precision=file.precision,
            sha256=measuring.hashes[file.name],
            runtime=file.runtime,
            golden=checks[file.name],
            timings=tuple(timings.get(file.name, ())),
            layers=layers.get(file.name, ()),
        )
        for file in plan.files
    )
    return OnDevice(
        measured_at=began,
        source=Source(kind="adb", tool="benchmark_model"),
        device=device,
        before=before,
        after=after,
        files=files,
        notes=(*notes, *([folder.left] if folder.left else [])),
        raw=tuple(measuring.raw),
    )


def _right(checks: Mapping[str, Sequence[GoldenCheck]], unit: str) -> set[str]:
    """Files whose answers on a unit were checked, and are right."""
    return {name for name, of in checks.items() for one in of if one.unit == unit and one.passed}


def _missed(checks: Mapping[str, Sequence[GoldenCheck]]) -> Iterator[str]:
    for name, found in checks.items():
        for check in found:
            if check.passed is False:
                yield (
                    f"{name} on {check.unit}: an answer is {check.largest:.4g} off, of "
                    f"{check.tolerance:.4g} allowed"
                )
