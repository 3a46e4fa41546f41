"""How much of this CPU's peak an exported file reaches, and which layers waste most.

The peak is that of a product of matrices, run by the file's own runtime with its own options:
what neither the processor's data sheet nor another library's kernels promise.

    found = roofline(Path("model.tflite"), "tflite", "int8", threads=1)
    found.share_of_peak    # 0.31
    describe(found)[0]     # "this file runs at 31 % of this CPU's int8 peak in tflite, 1 thread"
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from timeit import timeit

import numpy as np

from pipeline.base.errors import InputError
from pipeline.formats.format import GemmModule, LayersModule
from pipeline.formats.formats import FORMATS
from pipeline.formats.gemm import Work, candidates
from pipeline.formats.layer_times import OTHER
from pipeline.measure import timing

PRECISIONS = ("int8", "float")
WORST = 5
"""Layers that are named."""

_BURST_MS, _PEAK_ROUNDS = 5.0, 20
_FILE_ROUNDS, _LAYER_ROUNDS = 30, 15
_LISTED = 0.01
"""Least share of the time of an operation that gets a line."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A product of matrices that was timed.

    Attributes:
        operation: what the file calls it.
        shape: in words.
        macs_per_second: multiply-accumulates.
    """

    operation: str
    shape: str
    macs_per_second: float


@dataclass(frozen=True, kw_only=True)
class Peak(Rate):
    """The fastest product of matrices of a runtime on this CPU.

    Attributes:
        tried: all products, timed in turn.
    """

    tried: tuple[Rate, ...]


@dataclass(frozen=True, kw_only=True)
class LayerRate:
    """A layer of the file.

    Attributes:
        name: of the tensor that it makes.
        op: the file's operation, with its window: `CONV_2D 3x3`.
        shape: of its first input and its output, channels first.
        macs: multiply-accumulates for one image; 0 where it has no weights.
        ms: as a share of the file's time.
        share_of_peak: macs / ms over the peak.
        wasted_ms: ms - macs / peak.
    """

    name: str
    op: str
    shape: str
    macs: int
    ms: float
    share_of_peak: float
    wasted_ms: float


@dataclass(frozen=True, kw_only=True)
class OpRate:
    """All layers of one operation, save those that the runtime computes within another's.

    Attributes:
        layers: number of them; the other attributes are as a layer's, of all together.
    """

    layers: int
    macs: int
    ms: float
    share_of_peak: float
    wasted_ms: float


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A file's rate beside the peak of its runtime.

    Attributes:
        format: of `FORMATS`.
        precision: of the products that make the peak, int8 or float.
        threads: of the runtime.
        peak: its rate is that of the moments when the file was timed.
        macs: multiply-accumulates of the file for one image.
        ms: median of the whole file.
        layers_ms: what its layers took together when each was timed by itself; their times are
            scaled from this to `ms`.
        share_of_peak: macs / ms over the peak.
        worst: layers, the most wasted milliseconds first.
        by_op: all layers by operation, the most milliseconds first.
    """

    format: str
    precision: str
    threads: int
    peak: Peak
    macs: int
    ms: float
    layers_ms: float
    share_of_peak: float
    worst: tuple[LayerRate, ...]
    by_op: dict[str, OpRate]


def peak(format: str, precision: str, threads: int) -> Peak:
    """Time products of several shapes in turn, in bursts of equal length, and take the fastest.

    Args:
        format: of `FORMATS`.
        precision: int8 or float.
        threads: of the runtime.

    Raises:
        InputError: a format or precision that there is no product for.
    """
    module, _ = _modules(format, precision)
    gemms = candidates(module.OPERATIONS)
    bursts = [
        _burst(module.opened(module.gemm_file(gemm, precision), threads), _BURST_MS)
        for gemm in gemms
    ]
    runs = {str(number): run for number, (_, run) in enumerate(bursts)}
    taken = timing.interleaved(runs, warmup=1, rounds=_PEAK_ROUNDS, threads=threads)
    tried = tuple(
        Rate(
            operation=gemm.operation,
            shape=gemm.shape,
            macs_per_second=count * gemm.macs / latency.median * 1e3,
        )
        for gemm, (count, _), latency in zip(gemms, bursts, taken.values(), strict=True)
    )
    best = max(tried, key=_speed)
    return Peak(**vars(best), tried=tried)


def roofline(
    file: Path, format: str, precision: str, threads: int, ms: float | None = None
) -> Roofline:
    """Time a file, its layers and its runtime's peak.

    Args:
        file: an exported one.
        format: of `FORMATS`.
        precision: of the file, int8 or float.
        threads: of the runtime.
        ms: median of the whole file, where it has just been timed. Without it the file and the
            fastest product run in turn: a machine's speed can change from one timing to the next.

    Raises:
        InputError: the file is missing, or there is no peak for its format or precision.
    """
    module, timed = _modules(format, precision)
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; give an exported model")
    if ms is not None and not 0 < ms < math.inf:
        raise InputError(f"ms: got {ms}; give milliseconds above 0, or None to time the file")
    content = file.read_bytes()
    work = module.layer_work(content)
    macs = sum(layer.macs for layer in work.values())
    found = peak(format, precision, threads)
    if ms is None:
        speeds = [rate.macs_per_second for rate in found.tried]
        gemm = candidates(module.OPERATIONS)[speeds.index(found.macs_per_second)]
        fastest = module.opened(module.gemm_file(gemm, precision), threads)
        ms, rate = _in_turn(module.opened(content, threads), fastest, gemm.macs, threads)
        found = replace(found, macs_per_second=rate)
    times = timed.layer_times(content, rounds=_LAYER_ROUNDS, threads=threads)
    layers = layer_rates(work, times, ms, found)
    return Roofline(
        format=format,
        precision=precision,
        threads=threads,
        peak=found,
        macs=macs,
        ms=ms,
        layers_ms=sum(times.values()),
        share_of_peak=macs / ms * 1e3 / found.macs_per_second,
        worst=tuple(sorted(layers, key=lambda layer: -layer.wasted_ms)[:WORST]),
        by_op=_by_op(layers, found),
    )


def layer_rates(
    work: Mapping[str, Work], times: Mapping[str, float], ms: float, peak: Peak
) -> list[LayerRate]:
    """What every layer takes, its share of the peak, and what it wastes.

    Args:
        work: of the layers, by name.
        times: milliseconds of each layer, by name, from the format's `layer_times`.
        ms: of the whole file, for the sum of the layers' times to be scaled to.
        peak: of the runtime.
    """
    scale = ms / sum(times.values())
    added = Work(op=OTHER, shape="added by the runtime", macs=0)
    found = []
    for name, taken in times.items():
        layer, scaled = (added if name == OTHER else work[name]), taken * scale
        found.append(
            LayerRate(
                name=name,
                op=layer.op,
                shape=layer.shape,
                macs=layer.macs,
                ms=scaled,
                **_against(peak, layer.macs, scaled),
            )
        )
    return found


def describe(found: Roofline) -> list[str]:
    """Lines of text: the file's share of the peak, its worst layers, and its operations."""
    wasted = sum(layer.wasted_ms for layer in found.worst)
    return [
        f"this file runs at {_percent(found.share_of_peak)} of this CPU's {found.precision} peak "
        f"in {found.format}, {found.threads} thread{'s' if found.threads > 1 else ''}",
        f"  file: {found.macs / 1e9:.3g} G multiply-accumulates in {found.ms:.3g} ms, "
        f"{_per_second(found.macs / found.ms * 1e3)}",
        *_describe_peak(found.peak),
        f"layers that waste most ({wasted:.3g} ms together):",
        *(
            f"  {layer.wasted_ms:.3f} of {layer.ms:.3f} ms, {_percent(layer.share_of_peak)} of "
            # What was fused into one tensor has all the names, in TFLite.
            f"the peak: {layer.op}, {layer.shape} ({layer.name.split(';')[0]})"
            for layer in found.worst
        ),
        "by operation:",
        *_describe_ops(found.by_op, found.ms),
    ]


def _describe_peak(peak: Peak) -> list[str]:
    """The peak, and how near to it the other operations come that the runtime has."""
    lines = [f"  peak: {_per_second(peak.macs_per_second)}, {peak.operation} {peak.shape}"]
    # A machine's speed may have changed since they were tried: they count among each other.
    best = max(map(_speed, peak.tried))
    for operation in dict.fromkeys(rate.operation for rate in peak.tried):
        fastest = max((rate for rate in peak.tried if rate.operation == operation), key=_speed)
        if operation != peak.operation:
            share = _percent(_speed(fastest) / best)
            lines.append(f"  {operation} {fastest.shape}: {share} of the peak")
    return lines


def _describe_ops(by_op: Mapping[str, OpRate], ms: float) -> list[str]:
    listed = {name: op for name, op in by_op.items() if op.ms >= _LISTED * ms}
    lines = [
        f"  {op.ms:.3f} ms, {_percent(op.ms / ms)} of the time, {_percent(op.share_of_peak)} of "
        f"the peak, {op.wasted_ms:.3f} ms wasted: {name} ({op.layers})"
        for name, op in listed.items()
    ]
    rest = [op.ms for name, op in by_op.items() if name not in listed]
    return [*lines, f"  {sum(rest):.3f} ms: {len(rest)} other operations"] if rest else lines


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _speed(rate: Rate) -> float:
    return rate.macs_per_second


def _per_second(macs_per_second: float) -> str:
    return f"{macs_per_second / 1e9:,.0f} G/s"


def has_peak(format: str) -> bool:
    """Whether there are products of matrices and times of layers for a format."""
    known = FORMATS.get(format)
    return known is not None and known.gemm is not None and known.layers is not None


def _modules(format: str, precision: str) -> tuple[GemmModule, LayersModule]:
    """What makes and times products for a format, and what times a file's layers."""
    given = {
        "format": (format, [name for name in FORMATS if has_peak(name)]),
        "precision": (precision, PRECISIONS),
    }
    for name, (value, known) in given.items():
        if value not in known:
            raise InputError(f"{name}: got {value!r}; there is a peak for {' and '.join(known)}")
    gemm, layers = FORMATS[format].gemm, FORMATS[format].layers
    assert gemm is not None
    assert layers is not None
    return gemm(), layers()


def _burst(run: Callable[[], object], milliseconds: float) -> tuple[int, Callable[[], object]]:
    """How many runs take about so long, and a call of as many."""
    count = max(1, round(milliseconds / _median(run)))
    return count, partial(timeit, run, number=count)


def _median(run: Callable[[], object]) -> float:
    # Its threads are torch's, which do not matter here.
    return timing.interleaved({"": run}, warmup=2, rounds=5, threads=1)[""].median


def _in_turn(
    file: Callable[[], object], gemm: Callable[[], object], gemm_macs: int, threads: int
) -> tuple[float, float]:
    """Median milliseconds of the file, and the product's multiply-accumulates per second then.

    A burst of the product takes as long as a run of the file. Its rate is that of the file's
    median time at the median of the ratios of neighbours.
    """
    count, burst = _burst(gemm, _median(file))
    runs = {"file": file, "gemm": burst}
    taken = timing.compared(runs, rounds=_FILE_ROUNDS, threads=threads)
    ratio = float(np.median(np.divide(taken["gemm"].samples_ms, taken["file"].samples_ms)))
    milliseconds = taken["file"].median
    return milliseconds, count * gemm_macs / (ratio * milliseconds) * 1e3


def _against(peak: Peak, macs: int, ms: float) -> dict[str, float]:
    """What work of so many milliseconds reaches of the peak, and how many it wastes."""
    least = macs / peak.macs_per_second * 1e3
    return {"share_of_peak": least / ms, "wasted_ms": ms - least}


def _by_op(layers: Sequence[LayerRate], peak: Peak) -> dict[str, OpRate]:
    groups: defaultdict[str, list[LayerRate]] = defaultdict(list)
    for layer in layers:
        groups[layer.op].append(layer)
    found = {}
    for op, group in groups.items():
        macs, ms = sum(layer.macs for layer in group), sum(layer.ms for layer in group)
        found[op] = OpRate(layers=len(group), macs=macs, ms=ms, **_against(peak, macs, ms))
    return dict(sorted(found.items(), key=lambda item: -item[1].ms))
