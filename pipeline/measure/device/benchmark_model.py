"""What LiteRT's `benchmark_model` prints, as numbers.

    found = parsed(text)
    found.mean_us, found.runs, found.delegations["GPU"]

The tool logs lines, with or without `INFO: ` before them; versions differ in which they have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from pipeline.measure.device.record import LayerTime

Extent = Literal["all", "part", "none"]
_NUMBER = r"([-+]?(?:[.\d]+(?:e[-+]?\d+)?|nan|inf))"
"""As C++ prints one; what counts no runs has no mean."""
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_COUNT = re.compile(r"\bcount=(\d+)((?: \w+=\S+)*)")
_VALUE = re.compile(rf"\b(\w+)={_NUMBER}")
_OVERALL = re.compile(rf"\(MB\): init={_NUMBER} overall={_NUMBER}")
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_APPLIED = re.compile(
    r"Explicitly applied (\S+) delegate, and the model graph will be (completely|partially) "
    r"executed by the delegate(?: w/ (\d+) delegate kernels)?"
)
_NOT_APPLIED = re.compile(
    r"Though (\S+) delegate is explicitly applied, the model graph will not be executed"
)
_FAILED = re.compile(r"Failed to apply (\S+) delegate")
_UNSUPPORTED = re.compile(r"(\S+) acceleration is unsupported on this platform")
_UNKNOWN = re.compile(r"Unconsumed cmdline flags?:(.*)")
_THREADS = re.compile(r"Num threads: \[(\d+)\]")
_GRAPH = re.compile(r"Graph: \[([^\]]*)\]")
_MIB_IN_MB = 1.048576
_LAYERS = "Operator-wise Profiling Info for Regular Benchmark Runs"
_TABLE = re.compile(r"=+ Run Order =+")


@dataclass(frozen=True, kw_only=True)
class Delegation:
    """What a delegate took of the graph: the number of its kernels where the tool says it."""

    extent: Extent
    kernels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Printed:
    """The figures of one call of the tool; microseconds, over all runs that count.

    Attributes:
        init_us: until the file was ready for an image.
        first_us: of the first inference; 0 where none was made before those that count.
        mean_us: of an inference.
        runs: that count.
        min_us: of the fastest.
        max_us: of the slowest.
        deviation_us: standard deviation.
        median_us: None in older versions, as the two below.
        p5_us: a twentieth took less.
        p95_us: a twentieth took more.
        peak_mb: memory that the file added to the process at most, in units of 1e6 bytes.
        threads: that were asked for; None where they were not.
        graph: path of the file, as the tool was given it.
        delegations: by the delegate's name in the tool: XNNPACK, GPU, NNAPI.
        unsupported: delegates that the tool says it cannot use here.
        unknown_flags: of the command line, that this version of the tool does not have.
    """

    init_us: float
    first_us: float
    mean_us: float
    runs: int
    min_us: float
    max_us: float
    deviation_us: float
    median_us: float | None = None
    p5_us: float | None = None
    p95_us: float | None = None
    peak_mb: float | None = None
    threads: int | None = None
    graph: str | None = None
    delegations: dict[str, Delegation] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    unknown_flags: tuple[str, ...] = ()


def parsed(text: str) -> Printed:
    """Read what one call of the tool printed.

    Raises:
        ValueError: it is not that of a whole call.
    """
    timings = _TIMINGS.search(text)
    # The first line of counts is of the warm-up.
    counts = list(_COUNT.finditer(text))
    if timings is None or not counts:
        raise ValueError("no line 'Inference timings in us: ...': the tool did not come to its end")
    init, first, _, mean = map(float, timings.groups())
    values = {name: float(value) for name, value in _VALUE.findall(counts[-1][2])}
    alone = values.get("curr", mean)  # where all runs took the same, the tool prints that alone
    threads, graph = _THREADS.search(text), _GRAPH.search(text)
    unknown = _UNKNOWN.search(text)
    return Printed(
        init_us=init,
        first_us=first,
        mean_us=mean,
        runs=int(counts[-1][1]),
        min_us=values.get("min", alone),
        max_us=values.get("max", alone),
        deviation_us=values.get("std", 0.0),
        median_us=values.get("median"),
        p5_us=values.get("p5"),
        p95_us=values.get("p95"),
        peak_mb=_peak(text),
        threads=None if threads is None else int(threads[1]),
        graph=None if graph is None else graph[1],
        delegations=_delegations(text),
        unsupported=tuple(_UNSUPPORTED.findall(text)),
        unknown_flags=() if unknown is None else tuple(unknown[1].split()),
    )


def _peak(text: str) -> float | None:
    """What was watched, or else the growth of the most that the process ever held."""
    watched, overall = _PEAK.search(text), _OVERALL.search(text)
    if watched is not None:
        return float(watched[1]) * _MIB_IN_MB
    found = None if overall is None else float(overall[2]) * _MIB_IN_MB
    return found if found is not None and found > 0 else None


def _delegations(text: str) -> dict[str, Delegation]:
    found: dict[str, Delegation] = {}
    for name in (*_NOT_APPLIED.findall(text), *_FAILED.findall(text)):
        found[name] = Delegation(extent="none")
    for name, how, kernels in _APPLIED.findall(text):
        extent: Extent = "all" if how == "completely" else "part"
        found[name] = Delegation(extent=extent, kernels=int(kernels) if kernels else None)
    return found


def layers(text: str) -> tuple[LayerTime, ...]:
    """The operations of `--enable_op_profiling`, in the order they ran; none without it."""
    place = text.find(_LAYERS)
    table = _TABLE.search(text, place) if place >= 0 else None
    if table is None:
        return ()
    heads: list[str] = []
    found = []
    for line in text[table.end() :].splitlines()[1:]:
        cells = [cell.strip() for cell in line.split("\t")][1:]
        if not cells:
            break
        if not heads:
            heads = [cell.strip("[]") for cell in cells]
            continue
        row = dict(zip(heads, cells, strict=False))
        found.append(
            LayerTime(name=row["Name"], operation=row["node type"], ms=float(row["avg ms"]))
        )
    return tuple(found)
