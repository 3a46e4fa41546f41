"""The profile that ONNX Runtime writes with `enable_profiling`: events in Chrome's trace format.

    [{"cat": "Session", "name": "model_run", "dur": 110, "ts": 6583, ...},
     {"cat": "Node", "name": "r_kernel_time", "dur": 23, "args": {"op_name": "Relu", ...}, ...}]

Times are in microseconds.
"""

from __future__ import annotations

from typing import Any

from pipeline.measure.device.imports.reading import NotRead, Reading, joined
from pipeline.measure.device.record import LayerTime, RawOutput, timing_of

TOOL = "ONNX Runtime's profile"
_PROVIDER, _KERNEL, _RUN = "ExecutionProvider", "_kernel_time", "model_run"
_LOADING = ("model_loading_uri", "model_loading_array", "session_initialization")
_UNITS = {
    **dict.fromkeys(("CPU", "Xnnpack", "Dnnl", "ACL", "ArmNN"), "cpu"),
    **dict.fromkeys(("CUDA", "Tensorrt", "Dml", "WebGpu", "ROCM", "MIGraphX", "Js"), "gpu"),
    **dict.fromkeys(("Nnapi", "QNN", "VitisAI", "Rknpu"), "npu"),
}
"""What an execution provider computes on; others are named as they are."""


def is_profile(content: object) -> bool:
    """Whether a JSON value is such a profile."""
    if not isinstance(content, list) or not content:
        return False
    first = content[0]
    return isinstance(first, dict) and {"cat", "name", "dur", "ts"} <= first.keys()


def read(content: list[dict[str, Any]], raw: RawOutput) -> Reading:
    """Read a profile; its first run is what was run to warm up.

    Raises:
        NotRead: it holds no run.
        LookupError: a key is missing, likewise TypeError or ValueError: it is damaged.
    """
    runs = [float(event["dur"]) / 1e3 for event in content if event["name"] == _RUN]
    if not runs:
        raise NotRead(
            "a profile of ONNX Runtime without a run (model_run): run the session several times "
            "and end it with end_profiling()"
        )
    first, samples = runs[0], runs[1:] or runs
    layers = _layers(content)
    units = [layer.unit for layer in layers if layer.unit is not None]
    loading = sum(float(event["dur"]) for event in content if event["name"] in _LOADING) / 1e3
    timing = timing_of(
        joined(units) if units else "unknown",
        samples,
        runs=len(samples),
        first_ms=first,
        load_ms=loading if loading > 0 else None,
    )
    notes = ["the times of runs include what the profiler itself takes"]
    if len(runs) == 1:
        notes.append("of one run alone, which was the session's first")
    return Reading(
        tool=TOOL,
        device="a device that ONNX Runtime ran on",
        runtime="onnxruntime",
        format="onnx",
        timings=(timing,),
        layers=layers,
        notes=tuple(notes),
        raw=raw,
    )


def _layers(content: list[dict[str, Any]]) -> tuple[LayerTime, ...]:
    """Every node with the mean of its times, without its first where there are several."""
    times: dict[tuple[str, str], list[float]] = {}
    about: dict[tuple[str, str], dict[str, Any]] = {}
    for event in content:
        name = str(event["name"])
        if event["cat"] == "Node" and name.endswith(_KERNEL):
            key = (str(event["args"].get("node_index", "")), name.removesuffix(_KERNEL))
            times.setdefault(key, []).append(float(event["dur"]) / 1e3)
            about[key] = event["args"]
    return tuple(
        LayerTime(
            name=name or str(about[index, name]["op_name"]),
            operation=str(about[index, name]["op_name"]),
            unit=_unit(str(about[index, name].get("provider", ""))),
            ms=sum(taken[1:] or taken) / len(taken[1:] or taken),
        )
        for (index, name), taken in times.items()
    )


def _unit(provider: str) -> str | None:
    name = provider.removesuffix(_PROVIDER)
    if not name:
        return None
    return _UNITS.get(name, "".join(c for c in name.lower() if c.isascii() and c.isalnum()) or None)
