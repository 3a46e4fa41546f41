"""What was measured on devices, in reports: the machine stands beside every figure."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.commands.bundle.card import model_card
from pipeline.measure.device.record import Device, GoldenCheck, OnDevice, Source, Timing, timing_of
from pipeline.recipe.target import CardConfig
from pipeline.report import device, html
from pipeline.report.markdown import render
from pipeline.report.records import Report, TargetResult, budget
from tests.making.devices import a_file, on_device
from tests.making.reports import report, target

MAC = Device(name="MacBook Pro", soc="Apple M3", os="macOS", os_version="15.1")


def measured(*found: OnDevice, **changes: Any) -> TargetResult:
    return target(devices=found, **changes)


def of(target: TargetResult, **others: Any) -> OnDevice:
    return on_device(files=(a_file(sha256=target.sha256, **others),))


def shown(*found: OnDevice) -> Report:
    return report(measured(*found))


def three_machines() -> Report:
    """A phone, a Mac and an import, each with its own time."""
    sha256 = target().sha256
    phone = on_device(files=(a_file(sha256=sha256),))
    there = GoldenCheck(unit="ne", images=10, tolerance=0.2, largest=0.0, passed=True)
    unknown = GoldenCheck(unit="npu", images=0, missing="the service runs inputs of its own")
    mac = on_device(
        device=MAC,
        source=Source(kind="apple", tool="coremltools", version="9.0"),
        files=(a_file(sha256=sha256, timings=(timing_of("ne", [0.7]),), golden=(there,)),),
    )
    service = on_device(
        device=Device(name="Galaxy S24"),
        source=Source(kind="imported", tool="AI Hub", file="profile.json"),
        files=(
            a_file(sha256=sha256, golden=(unknown,), timings=(Timing(unit="npu", mean_ms=0.9),)),
        ),
    )
    return shown(phone, mac, service)


def test_every_row_names_its_machine() -> None:
    rows = device.rows(three_machines())
    assert [(row[1], row[2], row[4]) for row in rows] == [
        ("Google Pixel 8 (Tensor G3, Android 15)", "cpu", "2.00 ms (1.20 to 2.80)"),
        ("MacBook Pro (Apple M3, macOS 15.1)", "ne", "0.700 ms (0.700 to 0.700)"),
        ("Galaxy S24", "npu", "0.900 ms, mean"),
    ]
    assert rows[0][-1] == "passed, 0.1 of 0.2"
    assert rows[2][-1] == "not checked"


def test_the_pages_show_all_machines_and_how_they_were_measured() -> None:
    found = three_machines()
    for text in (render(found), html.render(found)):
        for words in ("Tensor G3", "Apple M3", "Galaxy S24", "from profile.json", "battery 84 %"):
            assert words in text
        assert "the service runs inputs of its own" in text
    assert "## On devices" in render(found)
    assert "not measured on the device" not in html.render(found)


def test_a_report_without_devices_says_nothing_of_them() -> None:
    assert device.section(report(target())) == []
    assert "not measured on the device" in html.render(report(target()))


def test_what_fell_back_is_said_with_the_machines_name() -> None:
    timing = timing_of("gpu", [1.0], delegate="GPU", delegated="none", fell_back="all on the CPU")
    found = shown(of(target(), timings=(timing,)))
    (line,) = [line for line in device.notes(found) if "fell" in line or "all on the CPU" in line]
    assert line.startswith("Google Pixel 8 (Tensor G3, Android 15): ")


def test_a_file_that_was_not_the_targets_is_refused() -> None:
    with pytest.raises(ValidationError, match="ran another file"):
        measured(on_device(files=(a_file(sha256="f" * 64),)))


def test_a_missed_golden_answer_is_said_of_the_device_and_unit() -> None:
    golden = GoldenCheck(unit="gpu", images=10, tolerance=0.1, largest=0.5, passed=False)
    found = measured(of(target(), golden=(golden,), timings=()))
    words = "Google Pixel 8, gpu: a golden answer is 0.5 off (at most 0.1)"
    assert found.device_misses == (words,)
    assert found.sound, "it answers as its program on this machine"
    assert f"**android not on** {words}" in render(report(found))
    assert f"Not on {words}" in html.render(report(found))


def test_a_budget_of_devices_judges_the_slowest_device_on_its_fastest_unit() -> None:
    slow = (timing_of("cpu", [9.0], threads=1), timing_of("cpu", [5.0], threads=4))
    sha256 = target().sha256
    other = on_device(device=MAC, files=(a_file(sha256=sha256),))
    one = on_device(files=(a_file(sha256=sha256, timings=slow),))
    limit = budget("device_latency_ms", 4.0, 5.0)
    found = measured(one, other, budgets=(limit,), passed=False)
    assert found.device_latency_ms == 5.0
    assert "latency on the device 5 ms, allowed at most 4 ms" in render(report(found))
    with pytest.raises(ValidationError, match=r"device_latency_ms judges 3\.0, not 5\.0"):
        measured(one, budgets=(budget("device_latency_ms", 4.0, 3.0),), passed=True)


def test_a_model_card_has_the_devices_times() -> None:
    found = measured(of(target()), takes="image", gives="logits")
    text = model_card(report(found), CardConfig())
    assert "- One image: 2.00 ms (1.20 to 2.80), cpu, 1 thread, on Google Pixel 8 (Tensor" in text
