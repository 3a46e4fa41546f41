"""What LiteRT's `benchmark_model` prints: of one call, or of several, one after the other."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from pipeline.base.errors import printable
from pipeline.measure.device import benchmark_model
from pipeline.measure.device.benchmark_model import Printed
from pipeline.measure.device.imports.benchmark_result import TOOL
from pipeline.measure.device.imports.reading import NotRead, Reading
from pipeline.measure.device.record import RawOutput, Timing

_BEGINS = re.compile(r"^.*\bSTARTING!", re.MULTILINE)
_SIZE = re.compile(r"input model file size \(MB\): ([-+.\deE]+)")
_UNITS = {
    **{"XNNPACK": "cpu", "GPU": "gpu", "CoreML": "ne", "COREML": "ne", "Hexagon": "npu"},
    **{"NNAPI": "npu", "QNN": "npu", "EXTERNAL": "npu", "STABLE": "npu"},
}
"""What a delegate computes on, by its name in the tool's text."""


def is_text(text: str) -> bool:
    """Whether a text is of that tool."""
    return _BEGINS.search(text) is not None or "Inference timings in us:" in text


def read(text: str, raw: RawOutput) -> Reading:
    """Read the text of one call or of several calls with the same file.

    Raises:
        NotRead: a call did not come to its end, or they are of several files, or two of the same
            unit and threads.
    """
    begins = [found.start() for found in _BEGINS.finditer(text)] or [0]
    calls = [text[a:b] for a, b in zip(begins, [*begins[1:], len(text)], strict=True)]
    try:
        printed = [benchmark_model.parsed(call) for call in calls]
    except ValueError as error:
        raise NotRead(f"text of benchmark_model, but {error}") from error
    graphs = {one.graph for one in printed if one.graph is not None}
    if len(graphs) > 1:
        raise NotRead(
            f"text of benchmark_model with calls of several files ({', '.join(sorted(graphs))}); "
            "give the text of one file"
        )
    timings = tuple(map(_timing, printed))
    called = [(timing.unit, timing.threads) for timing in timings]
    if len(set(called)) < len(called):
        raise NotRead(
            "text of benchmark_model with several calls on the same unit and threads; give the "
            "text of one of them"
        )
    size = _SIZE.search(text)
    graph = next(iter(graphs), None)
    return Reading(
        tool=TOOL,
        device="a device that benchmark_model ran on",
        runtime="litert",
        format="tflite",
        model=None if graph is None else printable(PurePosixPath(graph).name) or None,
        megabytes=None if size is None else float(size[1]),
        timings=timings,
        layers=benchmark_model.layers(calls[0]),
        raw=raw,
    )


def _timing(printed: Printed) -> Timing:
    unit, delegate, extent = "cpu", None, None
    for name, found in printed.delegations.items():
        if _UNITS.get(name, "npu") != "cpu" or delegate is None:
            unit, delegate, extent = _UNITS.get(name, "npu"), name, found.extent
    fell_back = None
    if extent == "none":
        fell_back = f"{delegate} took nothing of the graph"
    elif extent == "part":
        fell_back = f"{delegate} took a part of the graph, and the CPU the rest"
    return Timing(
        unit=unit,
        threads=printed.threads,
        runs=printed.runs,
        mean_ms=printed.mean_us / 1e3,
        median_ms=None if printed.median_us is None else printed.median_us / 1e3,
        min_ms=printed.min_us / 1e3,
        max_ms=printed.max_us / 1e3,
        delegate=delegate,
        delegated=extent,
        # XNNPACK computes on the CPU: what it leaves does so, too.
        fell_back=None if unit == "cpu" else fell_back,
        load_ms=printed.init_us / 1e3 if printed.init_us > 0 else None,
        first_ms=printed.first_us / 1e3 if printed.first_us > 0 else None,
        peak_mb=printed.peak_mb,
    )
