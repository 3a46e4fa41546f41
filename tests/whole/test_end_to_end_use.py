"""What people do with a finished run: predict, debug, bundle."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.base.checksums import damage, seal
from pipeline.commands.bundle import photos
from pipeline.commands.bundle.write import contract_in
from tests.making import ROOT
from tests.making.bundles import code_of, golden, reference, unpacked
from tests.making.cli import (
    command,
    environment,
    pocketnest,
)
from tests.making.narrow_output import MODEL_FILES, files_below, report_of
from tests.making.recipes import DEVICE_RECIPES, NARROW, settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images of a 3 and a 7, of another size and of several formats."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for label, suffix in ((3, "png"), (7, "webp"), (0, "jpg")):
        pixels = images[list(labels).index(label)].reshape(8, 8) * 255 / 16
        Image.fromarray(pixels.astype(np.uint8)).resize((64, 48)).save(folder / f"{label}.{suffix}")
    return folder


def test_predict_shows_every_runtime_beside_the_float_model(out: Path, digits: Path) -> None:
    done = pocketnest("predict", out / "combined", digits, "--top", "3")
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.split(str(digits))[1:]
    assert [part.split("\n")[0] for part in shown] == ["/0.jpg", "/3.png", "/7.webp"]
    for part in shown:
        _, heading, *rows = [line.split() for line in part.splitlines()[:5]]
        assert heading[:4] == ["class", "float", "litert", "onnxruntime"]
        assert heading[4] == "coreml"
        assert [len(row) for row in rows] == [5, 5, 5]
        scores = [[float(score) for score in row[1:]] for row in rows]
        assert [row[0] for row in scores] == sorted((row[0] for row in scores), reverse=True)
        assert all(0 <= score <= 1 for row in scores for score in row)
        for row in scores:  # three files of one program
            assert max(row[1:]) - min(row[1:]) < 0.1
        assert "largest difference from float:" in part


def test_predict_reads_standard_input(out: Path, digits: Path) -> None:
    run_dir = out / "android-litert-int8"
    piped = pocketnest("predict", run_dir, "-", given=(digits / "3.png").read_bytes())
    assert (piped.returncode, piped.stderr) == (0, "")
    named = pocketnest("predict", run_dir, digits / "3.png").stdout.splitlines()
    assert piped.stdout.splitlines()[1:] == named[1:]


@pytest.mark.parametrize("name", MODEL_FILES)
def test_debug_finds_no_fault_in_a_good_file(name: str, out: Path, tmp_path: Path) -> None:
    table = tmp_path / "layers.csv"
    done = pocketnest("debug", out / "combined", name, "--images", "8", "--csv", table)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(table) in done.stdout
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    assert {row["at_fault"] for row in rows} == {"False"}
    assert max(int(row["own_largest"]) for row in rows) <= 2
    assert all(float(row["program_sqnr_db"]) > 5 for row in rows)
    assert all(row["scale"] == row["file_scale"] for row in rows)


def spoil_a_layer(model: onnx.ModelProto) -> None:
    made_by = {node.output[0]: node for node in model.graph.node}
    (conv,) = [n for n in model.graph.node if n.op_type == "Conv" and n.output[0] == "conv2d_5"]
    name = made_by[conv.input[1]].input[0]
    (stored,) = [i for i in model.graph.initializer if i.name == name]
    weights = onnx.numpy_helper.to_array(stored)
    stored.CopyFrom(onnx.numpy_helper.from_array(weights[::-1].copy(), name))


@pytest.fixture(scope="module")
def bundles(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the unpacked bundles of all three targets."""
    folder = tmp_path_factory.mktemp("bundles")
    done = pocketnest("bundle", out / "combined", "--out", folder / "zip")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in MODEL_FILES:
        assert f"{folder / 'zip' / name}.zip" in done.stdout
        unpacked(folder / "zip" / f"{name}.zip", folder)
    return folder


KOTLIN = {
    *("kotlin/build.gradle.kts", "kotlin/settings.gradle.kts", "kotlin/gradle.properties"),
    *("kotlin/src/main/AndroidManifest.xml", "kotlin/src/main/kotlin/Photo.kt"),
    "kotlin/src/androidTest/kotlin/GoldenTest.kt",
}
CODE = {
    "android-litert-int8": {
        *KOTLIN,
        "kotlin/src/litert/kotlin/Classifier.kt",
        "kotlin/src/interpreter/kotlin/Classifier.kt",
    },
    "linux-arm-onnxruntime-int8": {
        *KOTLIN,
        "kotlin/src/main/kotlin/Classifier.kt",
        *("cpp/classifier.hpp", "cpp/photo.hpp", "cpp/golden.cpp"),
    },
    "iphone-coreml-w8a8": {
        "Package.swift",
        *("swift/Classifier.swift", "swift/Photo.swift", "swift/GoldenTests.swift"),
    },
}


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_bundle_holds_what_an_app_team_needs(name: str, bundles: Path, out: Path) -> None:
    bundle = bundles / name
    assert damage(bundle) is None
    images = {f"golden/{n:02d}.{kind}" for n in range(10) for kind in ("png", "rgb")}
    for kind in photos.KINDS:
        images |= {f"golden/photos/{kind.file}"}
        images |= {f"golden/photos/{Path(kind.file).stem}.{suffix}" for suffix in ("ppm", "rgb")}
    assert files_below(bundle) == (
        MODEL_FILES[name]
        | images
        | CODE[name]
        | {"README.md", "model_card.md", "contract.json", "labels.txt", "SHA256SUMS"}
        | {"golden/expected.csv", "golden/photos.csv", "python/classify.py"}
    )
    for file in MODEL_FILES[name]:
        assert (bundle / file).read_bytes() == (out / name / file).read_bytes()
    contract = contract_in(bundle)
    target = report_of(out, name)["targets"][0]
    assert contract.sha256 == target["sha256"]
    assert contract.output.classes == 10
    assert contract.golden.tolerance > 0
    parity = target["parity"]
    most = max(parity["steps"]["largest"], parity["rounding"]["largest"])
    least = 3 if target["format"] == "coreml" else 2
    assert contract.golden.why.startswith(f"{max(most, least)} steps of ")
    assert "Passed: " in (bundle / "model_card.md").read_text()


@pytest.mark.parametrize("name", ["android-litert-int8", "linux-arm-onnxruntime-int8"])
def test_code_of_a_bundle_gives_the_golden_answers(name: str, bundles: Path) -> None:
    bundle = bundles / name
    done = golden(bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 as expected" in done.stdout
    assert f"{len(photos.KINDS)} of {len(photos.KINDS)} photos as expected" in done.stdout
    table = bundle / "golden" / "expected.csv"
    kept = table.read_text()
    first, second, *rest = kept.splitlines()
    *cells, last = second.split(",")
    off = 1.01 * contract_in(bundle).golden.tolerance
    table.write_text("\n".join([first, ",".join([*cells, str(float(last) + off)]), *rest]))
    done = golden(bundle)
    table.write_text(kept)
    assert done.returncode == 1
    assert "9 of 10 as expected" in done.stdout


def test_code_for_core_ml_gives_the_golden_answers(
    bundles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = bundles / "iphone-coreml-w8a8"
    code = code_of(bundle)
    assert code.check(reference(bundle))
    assert "10 of 10 as expected" in capsys.readouterr().out
    run = reference(bundle)
    assert not code.check(lambda given: run(given) + 1.01 * code.TOLERANCE)


def test_the_same_run_gives_the_same_bundle(bundles: Path, out: Path, tmp_path: Path) -> None:
    name = "linux-arm-onnxruntime-int8"
    done = pocketnest("bundle", out / name, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    again = (tmp_path / f"{name}.zip").read_bytes()
    assert again == (bundles / "zip" / f"{name}.zip").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.zip"}


def test_debug_names_the_layer_that_is_wrong(out: Path) -> None:
    spoiled = out / "spoiled"
    shutil.copytree(out / "linux-arm-onnxruntime-int8", spoiled)
    try:
        model = onnx.load(spoiled / "model.onnx")
        spoil_a_layer(model)
        onnx.save(model, spoiled / "model.onnx")
        assert "model.onnx is not what was written" in pocketnest("debug", spoiled).stderr
        seal(spoiled)
        assert pocketnest("debug", spoiled, "--images", "8").returncode == 0
        with (spoiled / "debug.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    finally:
        shutil.rmtree(spoiled)
    assert [row["operation"] for row in rows if row["at_fault"] == "True"] == ["conv2d_5"]
    assert rows[0]["operation"] == "conv2d_5"


def test_a_wrong_writer_stops_the_run_unless_that_is_allowed(out: Path, tmp_path: Path) -> None:
    """The real command line, of a copy of the package whose ONNX writer swaps the colours."""
    copy = tmp_path / "pipeline"
    shutil.copytree(ROOT / "pipeline", copy, ignore=shutil.ignore_patterns("__pycache__"))
    writer = copy / "formats" / "onnx" / "file.py"
    text = writer.read_text()
    before = "        unsigned_activations(model)\n    "
    assert text.count(before) == 1
    swap = """\
        unsigned_activations(model)
        conv = next(n for n in model.graph.node if n.op_type == "Conv")
        name = as_onnx.producers(model)[conv.input[1]].input[0]
        as_onnx.set_constant(model, name, as_onnx.constants(model)[name][:, ::-1].copy())
    """
    writer.write_text(text.replace(before, swap))
    arguments = ["run", DEVICE_RECIPES["onnx"], "--out", out, *settings(*NARROW, "name=wrong")]

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments, *flags),
            cwd=tmp_path,
            env=environment() | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    done = run()
    assert done.returncode == 1, done.stdout + done.stderr
    assert not (out / "wrong").exists()
    assert "wrong: the onnx file is not the program that was trained:" in done.stderr
    # The digits are grey, so their logits are right: only the probes in colour show it.
    assert "1 of " in done.stderr
    assert "layers compute otherwise" in done.stderr
    assert "first layer that differs: conv1.0 conv2d: " in done.stderr
    assert "--allow-mismatch" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("--allow-mismatch")
    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert "mismatch allowed" in done.stdout
    target = report_of(out, "wrong")["targets"][0]
    assert target["parity"]["passed"] is False
    assert target["parity"]["first_difference"].startswith("conv1.0 conv2d")
    assert "**Do not ship wrong**" in (out / "wrong" / "report.md").read_text()
    refused = pocketnest("bundle", out / "wrong")
    assert refused.returncode == 2
    assert "does not answer as its program" in refused.stderr
    assert not (out / "wrong" / "wrong.zip").exists()
