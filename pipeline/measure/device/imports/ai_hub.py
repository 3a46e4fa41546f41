"""What Qualcomm AI Hub says of a profile job: the JSON of `job.download_profile`.

    {"execution_summary": {"all_inference_times": [3652, 3701], ...},
     "execution_detail": [{"name": "conv_1", "type": "Conv2d", "compute_unit": "NPU", ...}]}

Times are in microseconds, memory is in bytes, as in the client qai-hub 0.56.
"""

from __future__ import annotations

from typing import Any

from pipeline.measure.device.imports.reading import NotRead, Reading, joined
from pipeline.measure.device.record import LayerTime, RawOutput, timing_of

TOOL = "Qualcomm AI Hub"
_UNITS = ("CPU", "GPU", "NPU")


def is_profile(content: object) -> bool:
    """Whether a JSON value is such a profile."""
    return isinstance(content, dict) and "execution_summary" in content


def read(content: dict[str, Any], raw: RawOutput) -> Reading:
    """Read a profile.

    Raises:
        NotRead: it is of a version without the time of every run.
        LookupError: a key is missing, likewise TypeError or ValueError: it is damaged.
    """
    summary: dict[str, Any] = content["execution_summary"]
    if not summary.get("all_inference_times"):
        raise NotRead(
            "a profile of Qualcomm AI Hub without all_inference_times, the time of every run: it "
            "is of an older version of the service; profile again and download it with qai-hub"
        )
    layers = tuple(map(_layer, content["execution_detail"]))
    units = [layer.unit for layer in layers if layer.unit is not None]
    samples = [float(time) / 1e3 for time in summary["all_inference_times"]]
    peak = summary.get("estimated_inference_peak_memory")
    timing = timing_of(
        joined(units) if units else "unknown",
        samples,
        runs=len(samples),
        load_ms=_milliseconds(summary.get("first_load_time")),
        peak_mb=float(peak) / 1e6 if peak else None,
    )
    return Reading(
        tool=TOOL,
        device="a device of Qualcomm AI Hub",
        runtime=None,
        format=None,
        timings=(timing,),
        layers=layers,
        notes=(*_split(units), _estimate(summary)),
        raw=raw,
    )


def _layer(given: dict[str, Any]) -> LayerTime:
    unit = str(given["compute_unit"])
    return LayerTime(
        name=str(given["name"]),
        operation=str(given["type"]) if given.get("type") else None,
        unit=unit.lower() if unit in _UNITS else None,
        ms=None if given.get("execution_time") is None else float(given["execution_time"]) / 1e3,
    )


def _split(units: list[str]) -> tuple[str, ...]:
    """How many layers ran where, if not all on one unit."""
    found = [f"{units.count(unit)} on {unit.upper()}" for unit in sorted(set(units))]
    return (f"layers by compute unit: {', '.join(found)}",) if len(found) > 1 else ()


def _estimate(summary: dict[str, Any]) -> str:
    found = _milliseconds(summary["estimated_inference_time"])
    return f"the service's own estimate of an inference: {found} ms"


def _milliseconds(microseconds: float | None) -> float | None:
    return float(microseconds) / 1e3 if microseconds else None
