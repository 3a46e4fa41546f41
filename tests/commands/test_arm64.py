"""`pocketnest arm64` on finished runs, with a stand-in for QEMU that runs on this machine."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from pipeline.commands.arguments import some_of
from pipeline.measure.arm64.record import json_schema
from pipeline.measure.lanes.arm64.lane import CPUS
from tests.making.arm64 import INSTRUCTIONS, native_machine
from tests.making.cli import pocketnest
from tests.making.runs import narrow_runs


def test_processors_are_names_with_commas() -> None:
    assert some_of(CPUS)("max,cortex-a53,max") == ("max", "cortex-a53")
    with pytest.raises(argparse.ArgumentTypeError, match="got 'cortex'; must be some"):
        some_of(CPUS)("max,cortex")


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native_machine(tmp_path / "cache")
    return narrow_runs(tmp_path / "artifacts")


@pytest.mark.slow
def test_files_are_compared_and_core_ml_is_named(artifacts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--cpu", "max", "--images", "6", "--out", out)
    done = pocketnest("arm64", artifacts / "combined", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    tree = json.loads((out / "arm64.json").read_text())
    jsonschema.validate(tree, json_schema())
    assert [file["format"] for file in tree["files"]] == ["tflite", "onnx"]
    for file in tree["files"]:
        (cpu,) = file["cpus"]
        assert (cpu["cpu"], cpu["same"], cpu["images"]) == ("max", 6, 6)
        assert cpu["layers"] == cpu["layers_alike"] > 10
        assert cpu["program"] is not None
        assert cpu["instructions"]["total"] == INSTRUCTIONS
    assert "iphone-coreml-w8a8: not run: Core ML has no runtime for ARM64 Linux" in done.stdout
    assert "6/6" in done.stdout
    # One run alone, moved away from everything else.
    name = tree["files"][0]["name"]
    moved = tmp_path / "moved" / name
    shutil.copytree(artifacts / name, moved)
    shutil.rmtree(artifacts)
    done = pocketnest("arm64", moved, "--cpu", "max", "--images", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    (cpu,) = json.loads((moved / "arm64.json").read_text())["files"][0]["cpus"]
    assert cpu["same"] == 3
    assert cpu["program_missing"].startswith("its program is not here")
    assert pocketnest("verify", moved).returncode == 0, "a run may hold more than it was made with"


@pytest.mark.slow
def test_core_ml_alone_is_refused(artifacts: Path, tmp_path: Path) -> None:
    done = pocketnest("arm64", artifacts / "iphone-coreml-w8a8", "--out", tmp_path)
    assert done.returncode == 2
    assert "iphone-coreml-w8a8: Core ML has no runtime for ARM64 Linux; files of ONNX and" in (
        done.stderr
    )
    assert "Traceback" not in done.stderr
