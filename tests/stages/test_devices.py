"""A device's measurement in finished runs: device.json, the report, its budgets, and sealed."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pipeline.base.errors import InputError
from pipeline.measure.device import record
from pipeline.measure.device.record import Device, OnDevice, timing_of
from pipeline.measure.timing import sha256_of
from pipeline.stages.devices import take_in
from pipeline.stages.finished_run import open_runs
from tests.making.cli import narrow_run, pocketnest
from tests.making.devices import a_file, on_device
from tests.making.recipes import DEVICE_RECIPES
from tests.making.runs import narrow_runs

NAME = "android-litert-int8"


def measured(folder: Path, milliseconds: float, device: str = "Google Pixel 8") -> OnDevice:
    """A measurement of the file in a run's folder, and of another file."""
    timings = (timing_of("cpu", [milliseconds], threads=1),)
    own = a_file(sha256=sha256_of(folder / "model.tflite"), timings=timings)
    return on_device(files=(own, a_file(name="other")), device=Device(name=device))


@pytest.mark.slow
def test_runs_and_their_combined_report_take_a_measurement_in(tmp_path: Path) -> None:
    artifacts = narrow_runs(tmp_path / "artifacts")
    combined, own = artifacts / "combined", artifacts / NAME
    (own / "run.log").write_text("what a library said\n")
    runs = open_runs(combined)
    assert take_in(runs, measured(own, 2.0), print) == [own / "device.json"]
    take_in(open_runs(own), measured(own, 3.0, "Google Pixel 9"), print)
    take_in(open_runs(own), measured(own, 4.0), print)
    tree = json.loads((own / "device.json").read_text())
    jsonschema.validate(tree, record.json_schema())
    found = [(one["device"]["name"], len(one["files"])) for one in tree["machines"]]
    assert found == [("Google Pixel 9", 1), ("Google Pixel 8", 1)]
    for folder in (combined, own):
        assert pocketnest("verify", folder).returncode == 0
        for name in ("report.md", "report.html"):
            assert "Google Pixel 8" in (folder / name).read_text()
        assert "4.00 ms" in (folder / "report.md").read_text()
    assert "Google Pixel" not in (artifacts / "iphone-coreml-w8a8" / "report.md").read_text()
    assert (own / "run.log").read_text() == "what a library said\n"
    with (own / "run.log").open("a") as log:
        log.write("and more\n")
    assert pocketnest("verify", own).returncode == 0, "a log is not sealed"
    # The recipe again: the same file keeps what was measured of it.
    recipe = DEVICE_RECIPES["tflite"]
    limit = 'budgets={"latency_ms": {"device": 3.5}}'
    done = narrow_run([recipe], artifacts, limit)
    assert done.returncode == 3, done.stdout + done.stderr
    report = json.loads((own / "report.json").read_text())
    (target,) = report["targets"]
    assert [one["device"]["name"] for one in target["devices"]] == [
        "Google Pixel 9",
        "Google Pixel 8",
    ]
    (budget,) = [one for one in target["budgets"] if one["metric"] == "device_latency_ms"]
    assert (budget["value"], budget["limit"], budget["passed"]) == (4.0, 3.5, False)
    assert "latency on the device 4 ms, allowed at most 3.5 ms" in (own / "report.md").read_text()
    assert (own / "device.json").exists()


@pytest.mark.slow
def test_a_moved_run_takes_it_in_and_another_files_is_refused(tmp_path: Path) -> None:
    own = narrow_runs(tmp_path / "artifacts") / NAME
    moved = tmp_path / "elsewhere" / NAME
    moved.parent.mkdir()
    own.rename(moved)
    take_in(open_runs(moved), measured(moved, 2.0), print)
    assert pocketnest("verify", moved).returncode == 0
    assert sorted(path.name for path in moved.parent.iterdir()) == [NAME]
    with pytest.raises(InputError, match=f"none of its files is that of {NAME}"):
        take_in(open_runs(moved), on_device(), print)
