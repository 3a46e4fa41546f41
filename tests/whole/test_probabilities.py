"""Files that give probabilities, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.bundle.write import contract_in
from pipeline.formats.formats import FORMATS
from pipeline.measure.timing import size_bytes
from tests.making.bundles import code_of, golden, reference, unpacked
from tests.making.cli import pocketnest
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, settings

pytestmark = pytest.mark.slow

SHORT = (
    PLAIN_MODEL,
    "threads=1",
    "data.test_images=60",
    "data.calibration_images=60",
    "train.epochs=1",
    "prune=null",
    "qat.train.epochs=1",
    "guard.accuracy_drop_pt=null",
    "measure.rounds=3",
    "measure.warmup=1",
    "budgets=null",
    "target.output=probabilities",
)
NAMES = {form: recipe.stem for form, recipe in DEVICE_RECIPES.items()}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all formats; Core ML's is a classifier."""
    folder = tmp_path_factory.mktemp("probabilities")
    asked = [(["tflite", "onnx"], ()), (["coreml"], ("target.classifier=true",))]
    for forms, more in asked:
        recipes = [DEVICE_RECIPES[form] for form in forms]
        done = pocketnest("run", *recipes, "--out", folder, *settings(*SHORT, *more))
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def bundles(out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The unpacked bundle of each format."""
    folder, found = tmp_path_factory.mktemp("bundles"), {}
    for form, name in NAMES.items():
        done = pocketnest("bundle", out / name, "--out", folder / "zip", "--float16")
        assert done.returncode == 0, done.stderr
        found[form] = unpacked(folder / "zip" / f"{name}.zip", folder)
    return found


def report(out: Path, form: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / NAMES[form] / "report.json").read_text())
    return found


@pytest.mark.parametrize("form", NAMES)
def test_every_gate_passes(form: str, out: Path) -> None:
    (target,) = report(out, form)["targets"]
    assert target["parity"]["misses"] == []
    assert target["parity"]["layers_alike"] == target["parity"]["layers"] > 10
    assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 0
    assert target["int8_coverage"] == 1
    assert "made by softmax in float32, outside int8, behind the last layer" in target["gives"]
    if form == "tflite":
        assert (target["partitions"], target["outside"]) == (1, [])
    kind = "classify" if form == "coreml" else "SOFTMAX" if form == "tflite" else "Softmax"
    assert target["ops"][kind] == 1
    first = "Core ML, CPU" if form == "coreml" else "ONNX Runtime, CPU"
    assert target["delegates"][0]["name"] == ("XNNPACK, CPU" if form == "tflite" else first)
    for page in ("report.md", "report.html"):
        assert "Where it runs" in (out / NAMES[form] / page).read_text()


@pytest.mark.parametrize("form", NAMES)
def test_the_contract_says_that_nothing_more_is_to_be_made(
    form: str, bundles: dict[str, Path]
) -> None:
    output = contract_in(bundles[form]).output
    assert (output.gives, output.link) == ("probabilities", "softmax")
    assert output.kind == ("dictionary" if form == "coreml" else "tensor")
    card = (bundles[form] / "model_card.md").read_text()
    assert "made by softmax in float32, outside int8" in card


def test_the_golden_vectors_are_probabilities(bundles: dict[str, Path], capsys: Any) -> None:
    for form, bundle in bundles.items():
        first, row, *_ = (bundle / "golden" / "expected.csv").read_text().splitlines()
        assert "probability_9" in first
        assert sum(map(float, row.split(",")[3:])) == pytest.approx(1, abs=1e-5)
        if form == "coreml":
            code = code_of(bundle)
            assert code.check(reference(bundle))
        else:
            done = golden(bundle)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("form", NAMES)
def test_a_float16_file_is_proven_and_described(form: str, bundles: dict[str, Path]) -> None:
    bundle = bundles[form]
    contract = contract_in(bundle)
    half = contract.float16
    assert half is not None
    assert half.file == f"model_float16{FORMATS[form].suffix}"
    assert size_bytes(bundle / half.file) == half.size_bytes
    assert 0 < half.difference <= half.limit
    assert half.agreement >= 0.95
    assert half.images == 50
    assert half.tolerance < 1, "of a probability"
    assert half.file in (bundle / "README.md").read_text()
    module = FORMATS[form].module()
    assert module.interface(bundle / half.file) == module.interface(bundle / contract.file)
    expected = (bundle / "golden" / half.expected).read_text().splitlines()
    ours = (bundle / "golden" / "expected.csv").read_text().splitlines()
    assert expected[0] == ours[0]
    assert len(expected) == len(ours)
    assert expected != ours
    tests = {"tflite": "kotlin/src/androidTest/kotlin/GoldenTest.kt", "onnx": "cpp/golden.cpp"}
    code = (bundle / tests.get(form, "swift/GoldenTests.swift")).read_text()
    assert half.file in code


def test_a_bundle_in_float16_is_the_same_every_time(
    out: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    for form, name in NAMES.items():
        done = pocketnest("bundle", out / name, "--out", tmp_path, "--float16")
        assert done.returncode == 0, done.stderr
        again = (tmp_path / f"{name}.zip").read_bytes()
        assert again == (bundles[form].parent / "zip" / f"{name}.zip").read_bytes()


def test_predict_shows_the_probabilities_of_the_file(out: Path, bundles: dict[str, Path]) -> None:
    """No softmax of a softmax: those that the golden vectors have, to the digits shown."""
    for form, name in NAMES.items():
        golden_images = bundles[form] / "golden"
        done = pocketnest("predict", out / name, golden_images / "00.png", "--top", "10")
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()]
        shown = {int(row[0]): float(row[-1]) for row in rows if row and row[0].isdigit()}
        line = (golden_images / "expected.csv").read_text().splitlines()[1]
        wanted = dict(enumerate(map(float, line.split(",")[3:])))
        assert shown == pytest.approx(wanted, abs=6e-5)


def test_debug_and_inspect_know_probabilities(out: Path) -> None:
    debugged = pocketnest("debug", out / NAMES["tflite"], "--images", "4")
    assert debugged.returncode == 0, debugged.stderr
    looked = pocketnest("inspect", out / NAMES["tflite"])
    assert looked.returncode == 0, looked.stderr


@pytest.mark.parametrize(
    ("form", "asked", "said"),
    [
        ("onnx", ("target.classifier=true",), "only Core ML has classifiers"),
        ("coreml", ("target.classifier=true",), "set output to probabilities"),
        (
            "coreml",
            ("target.classifier=true", "target.output=probabilities", "task.kind=binary"),
            "task.kind binary has not, but classification",
        ),
    ],
)
def test_what_cannot_be_is_refused(form: str, asked: tuple[str, ...], said: str) -> None:
    done = pocketnest("check", DEVICE_RECIPES[form], *settings(*asked))
    assert done.returncode != 0
    assert said in done.stderr + done.stdout
