"""`pocketnest device` on finished runs and a phone: adbd is real, and LiteRT runs the files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import jsonschema
import pytest

from pipeline.measure.device.record import json_schema
from tests.device.test_phone import wait_until
from tests.making.cli import command, environment, pocketnest
from tests.making.phones import Phone, Phones, runner
from tests.making.runs import narrow_runs

pytestmark = pytest.mark.slow
NAME = "android-litert-int8"


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return narrow_runs(tmp_path / "artifacts")


def test_files_are_checked_and_timed_and_the_report_says_so(
    artifacts: Path, phone: Phone, tmp_path: Path
) -> None:
    tool = runner(tmp_path / "benchmark_model", POCKETNEST_GPU="part")
    given = ("--runner", tool, "--rounds", "2", "--units", "cpu,gpu")
    done = pocketnest("device", artifacts / "combined", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    own = artifacts / NAME
    tree = json.loads((own / "device.json").read_text())
    jsonschema.validate(tree, json_schema())
    (machine,) = tree["machines"]
    assert machine["device"]["name"] == "Nobody Phone 1"
    assert machine["source"]["tool"] == "benchmark_model"
    (file,) = machine["files"]
    assert [(check["unit"], check["passed"]) for check in file["golden"]] == [
        ("cpu", True),
        ("gpu", True),
    ]
    assert all(check["largest"] == 0 for check in file["golden"]), "the same kernels"
    assert [(t["unit"], t["threads"], len(t["samples_ms"])) for t in file["timings"]] == [
        ("cpu", 1, 2),
        ("cpu", 2, 2),
        ("cpu", 4, 2),
        ("gpu", None, 2),
    ]
    assert "took a part of the graph, in 3 pieces" in file["timings"][3]["fell_back"]
    assert file["layers"][-1]["operation"] == "DELEGATE"
    assert any("--num_runs=20" in raw["name"] for raw in machine["raw"])
    assert "iphone-coreml-w8a8: not run: Core ML runs on Apple's systems alone" in done.stdout
    assert "linux-arm-onnxruntime-int8: not run: " in done.stdout
    report = (own / "report.md").read_text()
    assert "Nobody Phone 1 (Nobody SoC 7, Android 15)" in report
    assert "Nobody Phone 1" in (artifacts / "combined" / "report.html").read_text()
    assert pocketnest("verify", own).returncode == 0
    assert phone.files() == []


def test_an_answer_that_is_wrong_is_exit_code_3_and_no_time(
    artifacts: Path, phone: Phone, tmp_path: Path
) -> None:
    tool = runner(tmp_path / "benchmark_model", POCKETNEST_WRONG="1")
    done = pocketnest("device", artifacts / NAME, "--runner", tool)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"not timed: {NAME} on cpu: an answer is" in done.stdout
    (machine,) = json.loads((artifacts / NAME / "device.json").read_text())["machines"]
    assert machine["files"][0]["timings"] == []
    assert f"**{NAME} not on** Nobody Phone 1, cpu" in (artifacts / NAME / "report.md").read_text()


def test_what_cannot_be_measured_is_one_line(
    artifacts: Path, network: Phones, tmp_path: Path
) -> None:
    tool = runner(tmp_path / "benchmark_model")
    done = pocketnest("device", artifacts / NAME, "--runner", tool)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no phone is connected" in done.stderr
    network.start()
    done = pocketnest("device", artifacts / "iphone-coreml-w8a8", "--runner", tool)
    assert done.returncode == 2
    assert "Core ML runs on Apple's systems alone; give a run with a TFLite file" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_leaves_nothing_on_the_phone(
    artifacts: Path, phone: Phone, tmp_path: Path, number: signal.Signals
) -> None:
    tool = runner(tmp_path / "benchmark_model")
    words = command("device", artifacts / NAME, "--runner", tool, "--rounds", "1000")
    with subprocess.Popen(words, env=environment() | {"PATH": os.environ["PATH"]}) as process:
        wait_until(lambda: bool(phone.programs()))
        process.send_signal(number)
        code = process.wait()
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not phone.files() and not phone.programs())
    assert not (artifacts / NAME / "device.json").exists()
    assert pocketnest("verify", artifacts / NAME).returncode == 0
