"""The table of formats: what an entry is, and that one entry is all that a format takes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.__main__ import main
from pipeline.commands.bundle.snippets import SOURCES
from pipeline.formats.format import FormatModule, GemmModule, LayersModule
from pipeline.formats.formats import FORMATS, FormatName
from tests.making import ROOT, toy_format
from tests.making.cli import environment
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, settings


@pytest.mark.slow
def test_a_format_is_one_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = (
        *(PLAIN_MODEL, "train.epochs=1", "prune=null", "qat.train.epochs=0", "qat.distill=null"),
        *("data.test_images=40", "data.calibration_images=40", "measure.rounds=3"),
        *("guard.accuracy_drop_pt=null", "target.format=toy", "threads=1"),
    )
    given = [str(DEVICE_RECIPES["onnx"]), *settings(*quick)]
    out, refused = tmp_path / "out", "target.format: got 'toy'; must be one of onnx, tflite, coreml"
    assert main(["check", *given]) != 0
    assert refused in capsys.readouterr().err
    with toy_format.added(tmp_path):
        assert main(["check", *given]) == 0
        assert main(["run", *given, "--out", str(out), "--quiet"]) in {0, 3}  # 3: of the budgets
        (run,) = (folder for folder in out.iterdir() if (folder / "report.json").is_file())
        (target,) = json.loads((run / "report.json").read_text())["targets"]
        assert (target["format"], target["path"]) == ("toy", "model.toy")
        assert target["runtime"] == "torch"
        assert target["parity"]["passed"]
        assert target["parity"]["layers"] == target["parity"]["layers_alike"] > 8
        assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 90
        assert target["speedup"] > 0
        assert "toy" in (run / "report.html").read_text(encoding="utf-8")
        with zipfile.ZipFile(run / "model.toy") as archive:
            assert len(json.loads(archive.read(toy_format.ABOUT))["classes"]) == 10
    # Records, too, know the formats of the table and no others.
    with pytest.raises(ValidationError, match="must be one of onnx, tflite, coreml"):
        TypeAdapter(FormatName).validate_python("toy")


@pytest.mark.parametrize("name", FORMATS)
def test_an_entry_has_all_that_is_asked_of_a_format(name: str) -> None:
    known = FORMATS[name]
    parts = [(known.module, FormatModule), (known.layers, LayersModule), (known.gemm, GemmModule)]
    for load, protocol in parts:
        if load is not None:
            asked = [word for word in vars(protocol) if not word.startswith("_")]
            assert asked
            assert [word for word in asked if not hasattr(load(), word)] == []
    assert (known.layers is None) == (known.gemm is None)
    assert set(known.bytes) == {"int8", "float"}


def test_a_bundle_has_code_for_every_format() -> None:
    assert SOURCES.keys() == FORMATS.keys()


def test_the_table_needs_neither_torch_nor_a_runtime() -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'tensorflow', 'coremltools', 'ai_edge_litert'}"
    script = f"import sys, pipeline.formats.formats; print({heavy} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
