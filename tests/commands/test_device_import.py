"""`pocketnest device --import`: times of other tools in a run's report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.measure.device.record import DeviceRecord
from pipeline.measure.timing import sha256_of
from tests.making.cli import pocketnest
from tests.making.device_files import AI_HUB, CALL
from tests.making.runs import narrow_runs

NAME = "android-litert-int8"


def text_of(file: Path) -> str:
    """What benchmark_model would print of this very file."""
    return CALL.replace("(MB): 16.9008", f"(MB): {file.stat().st_size / 1e6:.6g}")


@pytest.mark.slow
def test_times_of_other_tools_stand_beside_each_other(tmp_path: Path) -> None:
    artifacts = narrow_runs(tmp_path / "artifacts")
    run = artifacts / NAME
    (job := tmp_path / "job.json").write_text(json.dumps(AI_HUB))
    (log := tmp_path / "log.txt").write_text(text_of(run / "model.tflite"))
    done = pocketnest("device", run, "--import", job, "--name", "Galaxy S24")
    assert done.returncode == 0, done.stdout + done.stderr
    # Of several runs it is the one of a file of that tool's format.
    done = pocketnest("device", artifacts / "combined", "--import", log, "--name", "Pixel 8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "29.4 ms" in done.stdout
    record = DeviceRecord.model_validate_json((run / "device.json").read_text())
    assert [one.device.name for one in record.machines] == ["Galaxy S24", "Pixel 8"]
    assert [one.source.tool for one in record.machines] == [
        "Qualcomm AI Hub",
        "benchmark_model (LiteRT)",
    ]
    assert {one.files[0].sha256 for one in record.machines} == {sha256_of(run / "model.tflite")}
    for page in ("report.md", "report.html"):
        text = (run / page).read_text(encoding="utf-8")
        assert "Galaxy S24" in text
        assert "Pixel 8" in text
        assert "not checked" in text
    assert pocketnest("verify", run).returncode == 0
    # A second import of the same takes the place of the first.
    assert pocketnest("device", run, "--import", job, "--name", "Galaxy S24").returncode == 0
    record = DeviceRecord.model_validate_json((run / "device.json").read_text())
    assert len(record.machines) == 2
    # Times that may be of any of the three files are put into none.
    done = pocketnest("device", artifacts / "combined", "--import", job)
    assert done.returncode == 2
    assert "job.json: may be of " in done.stderr
    # Nor are those of another file.
    log.write_text(CALL)
    done = pocketnest("device", run, "--import", log)
    assert done.returncode == 2
    assert "times a file of 16.9008 MB, and that of android-litert-int8 has" in done.stderr


@pytest.mark.slow
def test_without_a_run_it_is_shown_alone(tmp_path: Path) -> None:
    (job := tmp_path / "job.json").write_text(json.dumps(AI_HUB))
    done = pocketnest("device", "--import", job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu+npu" in done.stdout
    assert "nothing was written: give the RUN_DIR" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


@pytest.mark.slow
def test_what_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    (junk := tmp_path / "junk").write_text("nothing of the kind")
    for given, said in (
        (("--import", junk), "junk: of no source that is known; give the JSON of a profile job"),
        (("--import", tmp_path / "x.mlperf"), "a performance report of Xcode"),
        ((), "give RUN_DIR and --runner PATH to measure on a phone, or --import FILE"),
    ):
        done = pocketnest("device", *given)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
