"""A run's packages on a Mac: golden images first, then times, of all in turn, on each unit."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.machine import utc_now
from pipeline.measure.device.record import (
    Conditions,
    Device,
    FileOnDevice,
    GoldenCheck,
    LayerTime,
    OnDevice,
    RawOutput,
    Source,
    Timing,
    timing_of,
)
from pipeline.measure.lanes.apple.session import SCRIPT, Event, Session
from pipeline.measure.timing import sha256_of

UNITS = {"cpu": "cpu", "gpu": "cpu+gpu", "ne": "cpu+ne"}
"""What computes, as records name it, by the name on the command line."""
_TITLES = {"gpu": "GPU", "ne": "Neural Engine"}
WARMUP = 10
Advance = Callable[[int, str], object]


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A package that is to run on the Mac.

    Attributes:
        name: of its target.
        path: of the package.
        precision: int8 or float.
        kind: how apps give the input.
        input: its name.
        output: its name.
        labels: of a classifier, whose output is a dictionary of them; None of others.
        inputs: the golden ones as Core ML takes them: float (images, C, H, W), or for images uint8
            (images, H, W, 3) or (images, H, W).
        answers: that it should give to them, float32 (images, ...).
        tolerance: most that one may be off.
        wrong: what it would answer with each fault that is known, by the fault in words.
        beside: it is of no run, and timed to be compared with.
    """

    name: str
    path: Path
    precision: Literal["int8", "float"]
    kind: Literal["array", "image"]
    input: str
    output: str
    inputs: NDArray[Any]
    answers: NDArray[np.float32]
    tolerance: float
    labels: tuple[str, ...] | None = None
    wrong: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    beside: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done on the Mac.

    Attributes:
        files: in the order in which they take turns.
        units: of `UNITS`.
        rounds: that are timed.
    """

    files: tuple[Wanted, ...]
    units: tuple[str, ...]
    rounds: int

    @property
    def steps(self) -> int:
        """Events that `measured` counts."""
        return len(self.units) * (len(self.files) + 1)


def archive(plan: Plan) -> bytes:
    """Everything that the Mac needs, as a tar archive: script, packages, images, answers."""
    packed = io.BytesIO()
    files = []
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(SCRIPT, SCRIPT.name)
        for number, file in enumerate(plan.files):
            package, inputs, expected = (
                f"{number}.mlpackage",
                f"inputs-{number}.npy",
                f"expected-{number}.npy",
            )
            tar.add(file.path, package)
            _add(tar, inputs, _npy(file.inputs))
            _add(tar, expected, _npy(file.answers))
            files.append(
                {
                    **{"name": file.name, "package": package, "inputs": inputs},
                    **{"expected": expected, "tolerance": file.tolerance, "kind": file.kind},
                    **{"input": file.input, "output": file.output, "labels": file.labels},
                }
            )
        job = {"files": files, "units": plan.units, "rounds": plan.rounds, "warmup": WARMUP}
        _add(tar, "job.json", json.dumps(job).encode())
    return packed.getvalue()


def _npy(values: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(values), allow_pickle=False)
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


def measured(session: Session, plan: Plan, advance: Advance) -> OnDevice:
    """Run the packages on the Mac, and what came of it.

    Args:
        session: that was opened.
        plan: what is wanted.
        advance: called with the number of steps done, and a line.

    Raises:
        InputError: as of `Session.run`; or what the Mac says makes no sense.
    """
    events: list[Event] = []
    done = 0
    for event in session.run(archive(plan)):
        events.append(event)
        if event["pocketnest"] in {"checked", "timed"}:
            done += 1
            advance(done, f"{event['pocketnest']} on {UNITS[event['unit']]}")
    try:
        return _record(events, plan)
    except (LookupError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise InputError(f"what the script on the Mac said makes no sense ({words})") from error


def _record(events: Sequence[Event], plan: Plan) -> OnDevice:
    machine = _one(events, "machine")
    hashes = _one(events, "files")["sha256"]
    checked = {(e["file"], e["unit"]): e for e in events if e["pocketnest"] == "checked"}
    timed = {e["unit"]: e for e in events if e["pocketnest"] == "timed"}
    notes: list[str] = []
    files = [_file(file, plan, checked, timed, hashes, machine, notes) for file in plan.files]
    known = machine["machine"]
    states = [Conditions(**e["after"]) for e in timed.values()]
    versions = machine["versions"]
    return OnDevice(
        measured_at=utc_now(),
        source=Source(kind="apple", tool="coremltools", version=versions["coremltools"]),
        device=Device(name=known["model"] or known["os"], **known),
        before=Conditions(**machine["conditions"]),
        after=states[-1] if states else Conditions(),
        files=tuple(files),
        notes=(*notes, *_beside(files, plan)),
        raw=tuple(
            RawOutput(name=_raw_name(e), text=json.dumps(e, ensure_ascii=False)) for e in events
        ),
    )


def _one(events: Sequence[Event], kind: str) -> Event:
    return next(event for event in events if event["pocketnest"] == kind)


def _raw_name(event: Event) -> str:
    return " ".join(filter(None, [event["pocketnest"], event.get("unit"), event.get("file")]))


def _file(
    file: Wanted,
    plan: Plan,
    checked: Mapping[tuple[str, str], Event],
    timed: Mapping[str, Event],
    hashes: Mapping[str, str],
    machine: Event,
    notes: list[str],
) -> FileOnDevice:
    if hashes[file.name] != sha256_of(file.path):
        raise InputError(f"{file.name}: other bytes arrived on the Mac than were sent; try again")
    checks = []
    for unit in plan.units:
        found = checked.get((file.name, unit))
        checks.append(_check(file, unit, found))
        notes += _notes_of(file, unit, checks[-1], found)
    timings = [
        _timing(file, unit, timed[unit], checked[file.name, unit])
        for unit in plan.units
        if unit in timed and "samples" in timed[unit]
    ]
    notes += [
        f"{UNITS[unit]}: not timed, {event['failed']}"
        for unit, event in timed.items()
        if "failed" in event and file is plan.files[0]
    ]
    return FileOnDevice(
        name=file.name,
        format="coreml",
        precision=file.precision,
        sha256=hashes[file.name],
        runtime="coreml",
        runtime_version=machine["machine"]["os_version"],
        golden=tuple(checks),
        timings=tuple(timings),
        layers=_layers([checked.get((file.name, unit)) for unit in plan.units]),
    )


def answers_of(event: Event) -> NDArray[np.float64]:
    """What a package answered on the Mac: (images, numbers)."""
    return np.array([[float(value) for value in answer] for answer in event["answers"]])


def _check(file: Wanted, unit: str, event: Event | None) -> GoldenCheck:
    """Judged here again: the Mac judged only whether to go on."""
    if event is None or "failed" in event:
        why = "was not run" if event is None else event["failed"]
        return GoldenCheck(unit=UNITS[unit], images=0, missing=str(why))
    apart = np.abs(answers_of(event) - file.answers.reshape(len(file.answers), -1))
    largest = float(np.nan_to_num(apart, nan=1e30, posinf=1e30).max())
    return GoldenCheck(
        unit=UNITS[unit],
        images=len(file.answers),
        tolerance=file.tolerance,
        largest=largest,
        passed=largest <= file.tolerance,
    )


def _notes_of(file: Wanted, unit: str, check: GoldenCheck, event: Event | None) -> list[str]:
    """What a missed check looks like, and where operations were planned to run."""
    notes = []
    where = f"{file.name} on {UNITS[unit]}"
    if event is not None and check.passed is False:
        like = fault_of(file, answers_of(event))
        if like is not None:
            notes.append(
                f"{where}: the answers are those of a known fault, in which {like}; write the file "
                "with target.products: clipped or float16"
            )
    if event is not None and "plan" in event:
        counted = Counter(preferred or "unknown" for _, _, preferred, _ in event["plan"])
        parts = [f"{count} on {name}" for name, count in sorted(counted.items())]
        notes.append(f"{where}: operations as Core ML plans them: {', '.join(parts)}")
    elif event is not None and "no_plan" in event:
        notes.append(f"{where}: no compute plan ({event['no_plan']})")
    return notes


def fault_of(file: Wanted, answers: NDArray[np.float64]) -> str | None:
    """The known fault whose answers these are, within the tolerance; None where they are none's."""
    for fault, wrong in file.wrong.items():
        apart = np.abs(answers - wrong.reshape(len(wrong), -1))
        if bool((apart <= file.tolerance).all()):
            return fault
    return None


def _timing(file: Wanted, unit: str, event: Event, check: Event) -> Timing:
    delegated, fell_back = _delegated(unit, check.get("plan"))
    load, first, peak = (check.get(name) for name in ("load_ms", "first_ms", "peak_bytes"))
    return timing_of(
        UNITS[unit],
        event["samples"][file.name],
        runs=len(event["samples"][file.name]),
        delegate=_TITLES.get(unit),
        delegated=delegated,
        fell_back=fell_back,
        load_ms=_above0(load),
        first_ms=_above0(first),
        peak_mb=_above0(None if peak is None else peak / 1e6),
        before=Conditions(**event["before"]),
        after=Conditions(**event["after"]),
    )


def _above0(value: float | None) -> float | None:
    return value if value is not None and 0 < value < math.inf else None


def _delegated(
    unit: str, plan: Sequence[Sequence[Any]] | None
) -> tuple[Literal["all", "part", "none"] | None, str | None]:
    """How much of a package Core ML plans for a unit, and why that is not all."""
    if unit == "cpu" or plan is None:
        return None, None
    wanted = sum(preferred == unit for _, _, preferred, _ in plan)
    title = _TITLES[unit]
    if wanted == len(plan):
        return "all", None
    if wanted == 0:
        return "none", f"Core ML plans none of {len(plan)} operations for the {title}"
    return "part", f"Core ML plans {wanted} of {len(plan)} operations for the {title}"


def _layers(checks: Sequence[Event | None]) -> tuple[LayerTime, ...]:
    """The plan of the last unit that has one; the others stand in the raw output."""
    plans = [check["plan"] for check in checks if check is not None and check.get("plan")]
    if not plans:
        return ()
    return tuple(
        LayerTime(name=name or kind, operation=kind, unit=preferred)
        for name, kind, preferred, _ in plans[-1]
    )


def _beside(files: Sequence[FileOnDevice], plan: Plan) -> list[str]:
    """The times of packages that are of no run: what those of runs are compared with."""
    return [
        f"{file.name}, in turn with the others, on {timing.unit}: {timing.typical_ms:.3g} ms"
        for file, wanted in zip(files, plan.files, strict=True)
        if wanted.beside
        for timing in file.timings
    ]
