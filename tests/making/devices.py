"""Measurements of devices that nobody has."""

from __future__ import annotations

from typing import Any

from pipeline.measure.device.record import (
    Conditions,
    Device,
    FileOnDevice,
    GoldenCheck,
    OnDevice,
    Source,
    timing_of,
)

SHA = "a" * 64


def a_file(**others: Any) -> FileOnDevice:
    golden = GoldenCheck(unit="cpu", images=10, tolerance=0.2, largest=0.1, passed=True)
    values: dict[str, Any] = {
        "name": "android",
        "format": "tflite",
        "precision": "int8",
        "sha256": SHA,
        "runtime": "litert",
        "golden": (golden,),
        "timings": (timing_of("cpu", [3.0, 1.0, 2.0], threads=1),),
    }
    return FileOnDevice(**(values | others))


def on_device(**others: Any) -> OnDevice:
    values: dict[str, Any] = {
        "measured_at": "2026-11-30T12:00:00Z",
        "source": Source(kind="adb", tool="benchmark_model"),
        "device": Device(
            name="Google Pixel 8", soc="Tensor G3", os="Android", os_version="15", abi="arm64-v8a"
        ),
        "before": Conditions(thermal="none", battery_percent=84, powered=True),
        "files": (a_file(),),
    }
    return OnDevice(**(values | others))
