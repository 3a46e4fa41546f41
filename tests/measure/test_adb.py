"""What adb, a phone and `benchmark_model` print, read without any of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.measure.device.benchmark_model import Delegation, parsed
from pipeline.measure.lanes.adb import phones, runner, state
from pipeline.measure.lanes.adb.phones import Listed

ONE = "R5CT10 device usb:1-1 product:shiba model:Pixel_8 device:shiba transport_id:3"
SAID = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [4]
INFO: Graph: [/data/local/tmp/x/model.tflite]
INFO: Loaded model /data/local/tmp/x/model.tflite
INFO: XNNPACK delegate created.
INFO: Explicitly applied XNNPACK delegate, and the model graph will be {extent} executed by the \
delegate{kernels}
INFO: Initialized session in 12.5ms.
INFO: Running benchmark for at least 3 iterations and at least 0 seconds but terminate if \
exceeding 150 seconds.
INFO: count=3 first=9000 curr=4100 min=4100 max=9000 avg=5766.67 std=2288 p5=4100 p95=9000

INFO: count=20 first=4000 curr=4100 min=3900 max=4500 avg=4.05e+03 std=101{percentiles}

INFO: Inference timings in us: Init: 12500, First inference: 9000, Warmup (avg): 5766.67, \
Inference (avg): 4.05e+03
INFO: Memory footprint delta from the start of the tool (MB): init=2.5 overall=10
"""


def said(extent: str = "completely", kernels: str = ".", percentiles: str = "") -> str:
    return SAID.format(extent=extent, kernels=kernels, percentiles=percentiles)


def test_figures_are_those_of_the_runs_that_count() -> None:
    found = parsed(said(percentiles=" p5=3900 median=4030 p95=4400"))
    assert (found.init_us, found.first_us, found.mean_us) == (12500, 9000, 4050)
    assert (found.runs, found.min_us, found.max_us, found.deviation_us) == (20, 3900, 4500, 101)
    assert (found.p5_us, found.median_us, found.p95_us) == (3900, 4030, 4400)
    assert found.peak_mb == pytest.approx(10.48576)
    assert (found.threads, found.graph) == (4, "/data/local/tmp/x/model.tflite")
    assert parsed(said()).median_us is None, "older versions print none"


def test_runs_that_all_took_the_same_have_one_figure() -> None:
    text = "INFO: count=2 curr=7(all same) p5=7 median=7 p95=7\n" + (
        "INFO: Inference timings in us: Init: 1, First inference: 0, Warmup (avg): -nan, "
        "Inference (avg): 7\n"
    )
    found = parsed(text)
    assert (found.min_us, found.max_us, found.runs) == (7, 7, 2)


@pytest.mark.parametrize(
    "text", ["", "INFO: STARTING!\nERROR: Failed to load model x\n", SAID[:400]]
)
def test_what_did_not_come_to_its_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="did not come to its end"):
        parsed(text)


def test_what_a_delegate_took_is_read() -> None:
    assert parsed(said()).delegations == {"XNNPACK": Delegation(extent="all")}
    part = parsed(said("partially", " w/ 3 delegate kernels."))
    assert part.delegations == {"XNNPACK": Delegation(extent="part", kernels=3)}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Unconsumed cmdline flags: --use_gpu=true", "this runner knows no GPU delegate"),
        ("GPU acceleration is unsupported on this platform.", "has no GPU delegate that can be"),
        (
            "Though GPU delegate is explicitly applied, the model graph will not be executed by "
            "the delegate.",
            "took nothing of the graph",
        ),
        (
            "Explicitly applied GPU delegate, and the model graph will be partially executed by "
            "the delegate w/ 2 delegate kernels.",
            "took a part of the graph, in 2 pieces",
        ),
        ("", "does not say that GPU took anything"),
    ],
)
def test_a_delegate_that_fell_back_is_named(line: str, why: str) -> None:
    found = runner.fell_back(parsed(f"INFO: {line}\n{said()}"), "gpu")
    assert found is not None
    assert why in found


def test_a_delegate_that_took_all_did_not_fall_back() -> None:
    line = "Explicitly applied GPU delegate, and the model graph will be completely executed by"
    assert runner.fell_back(parsed(f"INFO: {line} the delegate.\n{said()}"), "gpu") is None
    assert runner.fell_back(parsed(said()), "cpu") is None


def test_a_runner_without_what_golden_images_need_is_too_old() -> None:
    line = "WARN: Unconsumed cmdline flags: --output_filepath=/data/x --use_gpu=true\n"
    found = runner.too_old(parsed(line + said()))
    assert found == "this runner knows no --output_filepath: give a newer benchmark_model"
    assert (
        runner.too_old(parsed("WARN: Unconsumed cmdline flags: --use_gpu=true\n" + said())) is None
    )


def test_the_list_of_phones_is_read() -> None:
    text = f"* daemon started successfully\nList of devices attached\n{ONE}\n" + (
        "192.168.1.7:5555 offline\n0A no permissions (missing udev rules?); see [http://x]\n\n"
    )
    assert phones.parsed(text) == [
        Listed(serial="R5CT10", state="device", model="Pixel 8"),
        Listed(serial="192.168.1.7:5555", state="offline", model=None),
        Listed(serial="0A", state="no permissions", model=None),
    ]


@pytest.mark.parametrize(
    ("lines", "serial", "message"),
    [
        ("", None, "no phone is connected: adb lists none"),
        (f"{ONE}\nB device", None, r"2 phones are connected: R5CT10 \(Pixel 8\), B; name one with"),
        (f"{ONE}\nB device", "C", r"--serial C: not connected; adb lists R5CT10 \(Pixel 8\), B"),
        ("B unauthorized", None, "B: the phone is unauthorized; unlock it and allow USB debug"),
        ("B offline", "B", "B: the phone is offline; connect it anew"),
        ("B no permissions; see [x]", None, "the phone is no permissions; this user may not"),
        ("B recovery", None, "the phone is recovery; have it run Android"),
    ],
)
def test_a_phone_that_cannot_be_used_is_one_clear_line(
    lines: str, serial: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        phones.choice(phones.parsed(lines), serial)
    assert "\n" not in str(error.value)


def test_the_one_that_is_named_is_taken() -> None:
    assert phones.choice(phones.parsed(f"{ONE}\nB unauthorized"), "R5CT10").model == "Pixel 8"


def test_without_adb_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="adb: not found; install Android's platform-tools"):
        phones.chosen(None)


def test_an_adb_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "adb").write_text("#!/bin/sh\necho 'cannot bind: in use' >&2\nexit 1\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InputError, match="adb devices: exit status 1: cannot bind: in use"):
        phones.chosen(None)


def test_what_a_phone_does_not_tell_is_none() -> None:
    found = state.from_told({"model": "", "soc": "", "page": "x", "abi": "unknown"}, "R5CT10")
    assert (found.name, found.model, found.soc, found.os) == ("Phone R5CT10", None, None, None)
    assert (found.abi, found.page_size, found.cores) == (None, None, None)
    assert found.identity != state.from_told({}, "other").identity
    nothing = state.from_dumps("Can't find service: thermalservice\n")
    assert nothing == state.Conditions()
    assert not state.hot(nothing)


def test_thermal_states_have_androids_names() -> None:
    assert state.from_dumps("Thermal Status: 2\n").thermal == "moderate"
    assert state.hot(state.from_dumps("Thermal Status: 2\n"))
    assert not state.hot(state.from_dumps("Thermal Status: 1\n"))
    assert state.from_dumps("Thermal Status: 99\n").thermal is None


def test_a_runner_is_a_program_for_the_phone(tmp_path: Path) -> None:
    path = tmp_path / "benchmark_model"
    with pytest.raises(InputError, match=r"--runner .*: No such file"):
        runner.refuse_other_machine(path, "arm64-v8a")
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00")
    with pytest.raises(InputError, match="is a program for x86_64, and the phone's are arm64-v8a"):
        runner.refuse_other_machine(path, "arm64-v8a")
    runner.refuse_other_machine(path, "x86_64")
    runner.refuse_other_machine(path, None)
    path.write_text("#!/bin/sh\n")
    runner.refuse_other_machine(path, "arm64-v8a")
