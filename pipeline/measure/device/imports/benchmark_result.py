"""The protobuf message `BenchmarkResult` that LiteRT's `benchmark_model` writes as a file.

The message stands in LiteRT's `tflite/tools/benchmark/proto/benchmark_result.proto`; no package of
Python's carries it, so that it is described here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.measure.device.imports.reading import NotRead, Reading
from pipeline.measure.device.record import RawOutput, Timing

TOOL = "benchmark_model (LiteRT)"
_PACKAGE = "tflite.tools.benchmark"
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "LatencyMetrics": {
        **{"avg_ms": (1, "float"), "min_ms": (2, "float"), "max_ms": (3, "float")},
        **{"stddev_ms": (4, "float"), "median_ms": (5, "float"), "p5_ms": (6, "float")},
        **{"p95_ms": (7, "float"), "init_ms": (8, "float")},
        **{"first_inference_ms": (9, "float"), "average_warm_up_ms": (10, "float")},
    },
    "MemoryMetrics": {
        **{"init_footprint_kb": (1, "int64"), "overall_footprint_kb": (2, "int64")},
        "peak_mem_mb": (3, "float"),
    },
    "MiscMetrics": {
        **{"model_size_mb": (1, "float"), "num_runs": (2, "int32")},
        "num_warmup_runs": (3, "int32"),
        **{"model_throughput_in_mb_per_sec": (4, "float"), "throughput_fps": (5, "float")},
    },
    "BenchmarkResult": {
        "name": (1, "string"),
        "latency_metrics": (2, "LatencyMetrics"),
        "memory_metrics": (3, "MemoryMetrics"),
        "misc_metrics": (4, "MiscMetrics"),
    },
}
"""Number and type of every field, by message."""
_MIB_IN_MB = 1.048576


@cache
def message() -> Any:
    """The class of the message."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="benchmark_result.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _FIELDS.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            own = kind in _FIELDS
            described.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE if own else getattr(kinds, f"TYPE_{kind.upper()}"),
                type_name=f".{_PACKAGE}.{kind}" if own else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{_PACKAGE}.BenchmarkResult")
    )


def parsed(content: bytes) -> Any | None:
    """The message in a file; None where it is none, or holds fields that are not known here."""
    from google.protobuf.message import DecodeError

    found = message()()
    try:
        found.ParseFromString(content)
    except DecodeError:
        return None
    # Almost any bytes are a message of unknown fields: what is known is written the same again.
    known = message()()
    known.CopyFrom(found)
    known.DiscardUnknownFields()
    if not found.HasField("latency_metrics") or known.ByteSize() != len(content):
        return None
    return found


def read(found: Any, raw: RawOutput) -> Reading:
    """Read a message.

    Raises:
        NotRead: it holds no time of an inference.
    """
    latency, memory, misc = found.latency_metrics, found.memory_metrics, found.misc_metrics
    if not latency.avg_ms > 0:
        raise NotRead("a result of benchmark_model without a time of an inference (avg_ms)")
    # The message says neither the delegate nor the threads.
    timing = Timing(
        unit="unknown",
        mean_ms=float(latency.avg_ms),
        median_ms=_above0(latency.median_ms),
        min_ms=_above0(latency.min_ms),
        max_ms=_above0(latency.max_ms),
        runs=misc.num_runs if misc.num_runs > 0 else None,
        load_ms=_above0(latency.init_ms),
        first_ms=_above0(latency.first_inference_ms),
        peak_mb=_peak(memory),
    )
    size = _above0(misc.model_size_mb)
    return Reading(
        tool=TOOL,
        device="a device that benchmark_model ran on",
        runtime="litert",
        format="tflite",
        megabytes=size,
        timings=(timing,),
        notes=(
            *((f"its name: {found.name}",) if found.name.strip() else ()),
            "the result file says neither the delegate nor the threads",
        ),
        raw=raw,
    )


def _above0(value: float) -> float | None:
    return float(value) if value > 0 else None


def _peak(memory: Any) -> float | None:
    """What was watched, or else the growth of the most that the process ever held."""
    if memory.peak_mem_mb > 0:
        return float(memory.peak_mem_mb) * _MIB_IN_MB
    return _above0(memory.overall_footprint_kb * 1024 / 1e6)
