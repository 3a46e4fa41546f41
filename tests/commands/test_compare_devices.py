"""Times on devices, before and after: each device stands beside its own earlier time."""

from __future__ import annotations

from typing import Any

from pipeline.commands.compare.change import Allowances
from pipeline.commands.compare.devices import on_devices
from pipeline.measure.device.record import Device, Timing, timing_of
from pipeline.report.records import TargetResult
from tests.making.devices import a_file, on_device
from tests.making.reports import target


def file_on(*timings: Timing, **device: Any) -> TargetResult:
    """A target whose file was timed on a device."""
    found = on_device(files=(a_file(sha256=target().sha256, timings=timings),))
    if device:
        found = found.model_copy(update={"device": Device(**device)})
    return target(devices=(found,))


def cpu(*samples: float, threads: int = 1, **others: Any) -> Timing:
    return timing_of("cpu", samples, threads=threads, **others)


def verdicts(one: TargetResult, two: TargetResult) -> list[tuple[str, str]]:
    return [(c.what, c.verdict) for c in on_devices(one, two, Allowances())]


def test_a_time_that_grew_past_its_spread_is_a_regression() -> None:
    (found,) = on_devices(file_on(cpu(2.0, 2.1)), file_on(cpu(2.6, 2.7)), Allowances())
    assert found.verdict == "regression"
    assert found.what == "latency on Google Pixel 8 (Tensor G3, Android 15), cpu, 1 thread"
    assert found.note == "+29.3 %"
    assert verdicts(file_on(cpu(2.0)), file_on(cpu(2.1)))[0][1] == "worse"
    assert verdicts(file_on(cpu(2.0)), file_on(cpu(1.9)))[0][1] == "better"
    assert verdicts(file_on(cpu(2.0, 3.0)), file_on(cpu(2.5, 3.5)))[0][1] == "same"


def test_two_devices_are_never_compared() -> None:
    found = verdicts(file_on(cpu(2.0)), file_on(cpu(9.0), name="Old phone"))
    assert found == [
        ("latency on Google Pixel 8 (Tensor G3, Android 15), cpu, 1 thread", "unknown"),
        ("latency on Old phone, cpu, 1 thread", "unknown"),
    ]


def test_numbers_of_threads_are_apart() -> None:
    one, two = file_on(cpu(2.0)), file_on(cpu(9.0, threads=4))
    assert [verdict for _, verdict in verdicts(one, two)] == ["unknown", "unknown"]


def test_work_that_fell_back_is_a_regression_whatever_its_time() -> None:
    one = file_on(timing_of("gpu", [2.0]))
    two = file_on(timing_of("gpu", [2.0], fell_back="all ran on the CPU"))
    assert verdicts(one, two)[0][1] == "regression"


def test_a_mean_is_not_compared_with_a_median() -> None:
    one, two = file_on(timing_of("npu", [2.0])), file_on(Timing(unit="npu", mean_ms=2.0))
    assert verdicts(one, two)[0][1] == "unknown"


def test_without_devices_there_is_no_row() -> None:
    assert verdicts(target(), target()) == []
