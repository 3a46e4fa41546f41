"""`pocketnest apple` on finished runs, with a stand-in for the Mac."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.commands.apple.command import UNITS, host
from pipeline.commands.arguments import some_of
from pipeline.measure.device.record import DeviceRecord
from tests.making.cli import pocketnest
from tests.making.mac import Mac, mac
from tests.making.runs import narrow_runs

FAULT = "the second factor is given the first's scale"
NAME = "iphone-coreml-w8a8"


def test_units_are_names_with_commas() -> None:
    assert some_of(UNITS)("ne,cpu,ne") == ("ne", "cpu")
    with pytest.raises(argparse.ArgumentTypeError, match="got 'npu'; must be some of cpu,gpu,ne"):
        some_of(UNITS)("npu,cpu")


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "a mac", "mac\n"])
def test_a_host_is_never_an_option_of_ssh(text: str) -> None:
    assert host("me@mac") == "me@mac"
    with pytest.raises(argparse.ArgumentTypeError, match="must be a name for ssh"):
        host(text)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return narrow_runs(tmp_path / "artifacts")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mac]:
    with tempfile.TemporaryDirectory(prefix="mac") as name, mac(Path(name), monkeypatch) as found:
        yield found


@pytest.mark.slow
def test_a_runs_package_is_measured_beside_its_float16_one(artifacts: Path, there: Mac) -> None:
    run = artifacts / NAME
    given = ("--host", "me@mac", "--rounds", 3, "--units", "cpu,ne")
    done = pocketnest("apple", artifacts / "combined", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    record = DeviceRecord.model_validate_json((run / "device.json").read_text())
    (machine,) = record.machines
    (file,) = machine.files
    assert (machine.source.kind, file.name, file.precision) == ("apple", NAME, "int8")
    assert [(check.unit, check.passed, check.largest) for check in file.golden] == [
        ("cpu", True, 0.0),
        ("cpu+ne", True, 0.0),
    ]
    assert [(timing.unit, timing.runs) for timing in file.timings] == [("cpu", 3), ("cpu+ne", 3)]
    beside = f"{NAME}, float16, in turn with the others, on cpu+ne: "
    assert any(note.startswith(beside) for note in machine.notes)
    assert there.left() == []
    # The other runs have no package, and their folders nothing new.
    assert done.stdout.count("not run: no Core ML package") == 2
    assert not (artifacts / "android-litert-int8" / "device.json").exists()
    # The report has it, with the machine's name, and the run is sealed again.
    (target,) = json.loads((run / "report.json").read_text())["targets"]
    assert [device["source"]["kind"] for device in target["devices"]] == ["apple"]
    assert "cpu+ne" in (run / "report.md").read_text()
    assert pocketnest("verify", run).returncode == 0


@pytest.mark.slow
def test_a_neural_engine_that_is_wrong_stops_it(artifacts: Path, there: Mac) -> None:
    there.faults["ne"] = FAULT
    run = artifacts / NAME
    # Moved away from its store: there is no float16 package to compare with, and that is said.
    moved = artifacts.parent / "moved" / NAME
    shutil.copytree(run, moved)
    done = pocketnest("apple", moved, "--host", "me@mac", "--units", "cpu,ne")
    assert done.returncode == 3, done.stdout + done.stderr
    (machine,) = DeviceRecord.model_validate_json((moved / "device.json").read_text()).machines
    (file,) = machine.files
    assert [check.passed for check in file.golden] == [True, False]
    assert file.timings == ()
    assert f"the answers are those of a known fault, in which {FAULT}" in done.stdout
    assert "write the file with target.products: clipped or float16" in done.stdout
    assert "no float16 package to compare with" in done.stdout


@pytest.mark.slow
def test_what_cannot_be_asked_is_one_line(artifacts: Path, there: Mac) -> None:
    done = pocketnest("apple", artifacts / NAME)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Core ML runs on Apple systems only, not on Linux; give a")
    done = pocketnest("apple", artifacts / "android-litert-int8", "--host", "me@mac")
    assert done.returncode == 2
    assert "a Mac is for Core ML packages; give a run that has one" in done.stderr
    assert done.stderr.count("\n") == 1
