"""Measuring on a phone: its daemon, its disk and its programs are real, the network is a toy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.formats.ports import Interface, Port
from pipeline.measure.device.phone import Plan, Wanted, measured
from pipeline.measure.device.record import OnDevice
from pipeline.measure.lanes.adb import phones, state
from pipeline.measure.lanes.adb.adb import Adb, Disconnected
from pipeline.measure.lanes.adb.folder import PREFIX, Folder, sweep
from tests.making.phones import PLACE, Phone, Phones, quick_runner
from tests.making.processes import when

ANSWER = np.array([1.5, -2.0], np.float32)


def plan(
    folder: Path, *, answer: np.ndarray = ANSWER, seconds: float = 0.0, **others: object
) -> Plan:
    """Two files of a toy network, whose runner answers `answer`."""
    file = folder / "model.tflite"
    file.write_bytes(os.urandom(1000))
    port = Port(name="image", shape=(1, 2, 2, 3), dtype="float32")
    interface = Interface(input=port, output=Port(name="logits", shape=(1, 2), dtype="float32"))
    files = tuple(
        Wanted(
            name=name,
            path=file,
            format="tflite",
            precision=precision,
            runtime="litert",
            interface=interface,
            inputs=np.zeros((2, 1, 2, 2, 3), np.float32),
            answers=np.stack([ANSWER, ANSWER]),
            tolerance=0.1,
        )
        for name, precision in (("small", "int8"), ("large", "float"))
    )
    runner = quick_runner(folder / "benchmark_model", answer.tobytes(), seconds)
    values = {"units": ("cpu",), "rounds": 2, "rest": 0.0} | others
    return Plan(files=files, runner=runner, **values)  # type: ignore[arg-type]


def on(phone: Phone) -> Adb:
    return phones.chosen(phone.serial)


def run(phone: Phone, wanted: Plan) -> OnDevice:
    return measured(on(phone), wanted, Folder(phone=on(phone)), lambda done, text: None)


def test_a_phone_says_what_it_is_and_how_it_is(phone: Phone) -> None:
    found = state.device(on(phone))
    assert (found.name, found.soc, found.abi) == ("Nobody Phone 1", "Nobody SoC 7", "x86_64")
    assert (found.os, found.os_version, found.page_size) == ("Android", "15", 16384)
    now = state.conditions(on(phone))
    assert (now.thermal, now.battery_percent, now.powered) == ("none", 84, True)
    assert now.battery_celsius == 27.1


def test_none_one_and_two_phones(network: Phones) -> None:
    with pytest.raises(InputError, match="no phone is connected"):
        phones.chosen(None)
    first = network.start(1)
    assert phones.chosen(None).serial == first.serial
    second = network.start(2)
    with pytest.raises(InputError, match=r"2 phones are connected: .*--serial"):
        phones.chosen(None)
    assert phones.chosen(second.serial).serial == second.serial
    with pytest.raises(InputError, match="--serial R5: not connected; adb lists"):
        phones.chosen("R5")


def test_files_take_turns_after_their_answers_were_checked(phone: Phone, tmp_path: Path) -> None:
    found = run(phone, plan(tmp_path))
    assert [file.name for file in found.files] == ["small", "large"]
    for file in found.files:
        (check,) = file.golden
        assert (check.passed, check.largest, check.images) == (True, 0.0, 2)
        assert [(t.unit, t.threads) for t in file.timings] == [("cpu", 1), ("cpu", 2), ("cpu", 4)]
        assert all(t.samples_ms == (0.008, 0.008) for t in file.timings)
        assert all((t.load_ms, t.first_ms, t.runs) == (0.012, 0.09, 40) for t in file.timings)
    order = [raw.name.split(":")[0] for raw in found.raw]
    assert all(name.startswith("golden") for name in order[:4])
    assert (
        order[4:8]
        == [
            "times of small on cpu, 1 thread",
            "times of large on cpu, 1 thread",
        ]
        * 2
    )
    assert [name for name in order if name.startswith("operations")] == [
        "operations of small on cpu",
        "operations of large on cpu",
    ]
    assert phone.files() == []


def test_nothing_is_timed_where_an_answer_is_wrong(phone: Phone, tmp_path: Path) -> None:
    found = run(phone, plan(tmp_path, answer=ANSWER + np.float32(0.5)))
    assert not found.sound
    assert all(file.timings == () for file in found.files)
    assert "not timed: small on cpu: an answer is 0.5 off, of 0.1 allowed" in found.notes
    assert phone.files() == []


def test_a_delegate_that_took_nothing_is_said(phone: Phone, tmp_path: Path) -> None:
    found = run(phone, plan(tmp_path, units=("gpu",)))
    (timing,) = found.files[0].timings
    assert (timing.unit, timing.threads, timing.delegate) == ("gpu", None, "GPU")
    assert timing.fell_back is not None


def test_a_hot_phone_is_waited_for_and_named(phone: Phone, tmp_path: Path) -> None:
    phone.set("thermalservice", "Thermal Status: 3\n")
    found = run(phone, plan(tmp_path, cool=0.1))
    assert any("did not cool down" in note and "severe" in note for note in found.notes)
    phone.set("thermalservice", "Thermal Status: 1\n")
    assert not any("cool down" in note for note in run(phone, plan(tmp_path)).notes)


def test_a_full_disk_is_named_and_left_empty(network: Phones, tmp_path: Path) -> None:
    phone = network.start(megabytes=1)
    wanted = plan(tmp_path)
    wanted.files[0].path.write_bytes(os.urandom(2_000_000))
    with pytest.raises(InputError, match=r"no room left in /data/local/tmp for model.tflite \(2.0"):
        run(phone, wanted)
    assert phone.files() == []


def test_a_runner_for_another_processor_is_refused(phone: Phone, tmp_path: Path) -> None:
    wanted = plan(tmp_path)
    wanted.runner.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00")
    with pytest.raises(InputError, match="is a program for arm64-v8a, and the phone's are x86_64"):
        run(phone, wanted)


def test_a_runner_that_fails_ends_it_with_its_last_words(phone: Phone, tmp_path: Path) -> None:
    wanted = plan(tmp_path)
    wanted.runner.write_text("#!/bin/sh\necho 'ERROR: no such file' >&2\nexit 1\n")
    with pytest.raises(InputError, match=r"the runner failed .*ERROR: no such"):
        run(phone, wanted)
    assert phone.files() == []


def test_a_connection_that_breaks_in_the_middle(
    network: Phones, phone: Phone, tmp_path: Path
) -> None:
    wanted = plan(tmp_path, seconds=1.0)
    device = on(phone)
    folder = Folder(phone=device)
    broken = when(lambda: len(phone.programs()) > 0, lambda: network.adb("disconnect"))
    with pytest.raises(Disconnected, match="the connection to the phone broke"):
        measured(device, wanted, folder, lambda done, text: None)
    broken.join()
    assert folder.left is not None
    assert "could not be seen removed" in folder.left
    wait_until(lambda: not phone.files() and not phone.programs())


def test_a_phone_that_hears_nothing_cleans_up_by_itself(phone: Phone) -> None:
    # Stopped, the program's connections stay open: nothing but the heartbeat ends.
    process = child(phone, silent=3)
    wait_until(lambda: bool(phone.files()))
    time.sleep(2)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not phone.files())
    process.kill()
    process.wait()


def test_what_a_switched_off_phone_kept_is_removed_by_the_next_call(phone: Phone) -> None:
    left = phone.place / f"{PREFIX}0123"
    left.mkdir()
    (left / "model.tflite").write_bytes(b"x")
    (phone.place / "of-others").mkdir()
    process = child(phone)
    wait_until(lambda: len(phone.files()) == 3)
    assert sweep(on(phone), seconds=3) == [f"{PLACE}/{PREFIX}0123"]
    assert len(phone.files()) == 2, "the folder of a call that goes on stays"
    process.kill()
    process.wait()
    wait_until(lambda: phone.files() == ["of-others"])


CHILD = """\
import sys, time
from pipeline.measure.lanes.adb.folder import Folder
from pipeline.measure.lanes.adb.phones import chosen
with Folder(phone=chosen(sys.argv[1]), silent=int(sys.argv[2])).open():
    time.sleep(3600)
"""


def child(phone: Phone, silent: int = 60) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, phone.serial, str(silent)])


def wait_until(condition: object, seconds: float = 100.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
