"""The real recipes on a narrow network, through the real command line."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from coremltools.models.utils import load_spec
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.base.checksums import damage, seal
from pipeline.base.store import LATEST
from pipeline.commands.bundle import photos
from pipeline.commands.bundle.write import contract_in
from pipeline.stages.graph import STAGES
from pipeline.stages.judge import JUDGES
from pipeline.tasks.predictions import read_predictions
from tests.making import ROOT
from tests.making.bundles import code_of, golden, reference, unpacked
from tests.making.cli import (
    command,
    environment,
    narrow_device_runs,
    narrow_run,
    pocketnest,
)
from tests.making.recipes import DEVICE_RECIPES, NARROW, settings
from tests.making.runs import narrow_runs

pytestmark = pytest.mark.slow

MODEL_FILES = {
    "android-litert-int8": {"model.tflite"},
    "linux-arm-onnxruntime-int8": {"model.onnx"},
    "iphone-coreml-w8a8": {
        "model.mlpackage/Manifest.json",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    },
}
BESIDE = {
    "images.safetensors",
    "layers.json",
    "predictions.safetensors",
    "report.json",
    "report.md",
    "report.html",
    "recipe.yaml",
    "labels.txt",
    "stages.json",
    "SHA256SUMS",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run of all three device recipes."""
    return narrow_runs(tmp_path_factory.mktemp("run") / "artifacts")


def files_below(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def report_of(out: Path, name: str) -> dict:
    return json.loads((out / name / "report.json").read_text())


def weights_of(out: Path, stage: str) -> Path:
    (file,) = out.glob(f".store/{stage}-*/weights.safetensors")
    return file


def test_the_exact_set_of_files(out: Path) -> None:
    assert {p.name for p in out.iterdir()} == {*MODEL_FILES, "combined", "run.log", ".store"}
    for name, model in MODEL_FILES.items():
        assert files_below(out / name) == model | BESIDE
    assert files_below(out / "combined") == {"report.json", "report.md", "report.html"}


def test_recipes_share_the_trained_stages(out: Path) -> None:
    names = [p.name for p in (out / ".store").iterdir() if not p.name.startswith(".")]
    stages = sorted(name.rsplit("-", 1)[0] for name in names)
    judged = ["judge_fold", "judge_prune"]
    once = ["baseline", "fold", "prune", "qat", "train", *judged]
    assert stages == sorted([*once, *["export"] * 3, *["verify"] * 3, *["measure"] * 3])


@pytest.mark.parametrize("name", [*MODEL_FILES, "combined"])
def test_the_report_follows_its_schema(out: Path, name: str) -> None:
    schema = json.loads(
        resources.files("pipeline.report").joinpath("report.schema.json").read_text()
    )
    jsonschema.validate(report_of(out, name), schema)


def test_the_report_says_what_was_measured(out: Path) -> None:
    report = report_of(out, "combined")
    assert report["passed"] is True
    assert report["baseline"]["accuracy"]["test"]["images"] == 450
    assert report["baseline"]["accuracy"]["test"]["top1"] > 0.9
    assert report["host"]["gpu"] is not None or report["baseline"]["device_kind"] == "cpu"
    stages = {stage["name"]: stage for stage in report["stages"]}
    apart = {"times", "sparsify", *(judge.name for judge in JUDGES.values())}
    assert list(stages) == [s.name for s in STAGES if s.name not in apart]
    assert stages["prune"]["top1"] > 0.9
    assert stages["fold"]["top1"] > 0.9
    assert stages["prune"]["macs"] <= 0.5 * stages["baseline"]["macs"]
    assert stages["prune"]["params"] < stages["baseline"]["params"]
    assert [target["format"] for target in report["targets"]] == ["tflite", "onnx", "coreml"]
    for target in report["targets"]:
        assert target["int8_coverage"] == 1.0
        assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 500
        assert target["accuracy_drop_pt"] is None or target["accuracy_drop_pt"] <= 1.0


def test_every_file_answers_as_the_program_does(out: Path) -> None:
    for target in report_of(out, "combined")["targets"]:
        parity = target["parity"]
        assert target["agreement"] >= 0.995
        assert parity["passed"] is True
        assert parity["images"] == 450 + 180
        assert parity["agreement"] >= 0.995
        core_ml = target["format"] == "coreml"  # its tensors are float16
        assert parity["steps"]["median"] <= core_ml
        assert parity["steps"]["p99"] <= 2 + core_ml
        assert 0 <= parity["rounding"]["p99"] <= 2 + core_ml
        assert parity["layers"] == parity["layers_alike"] > 50
        assert target["partitions"] == (1 if target["format"] == "tflite" else None)


def test_runnable_targets_are_timed(out: Path) -> None:
    for target in report_of(out, "combined")["targets"][:2]:
        assert target["evaluated"] == "runtime"
        assert target["latency_ms"]["median"] > 0
        low, high = target["speedup_p10"], target["speedup_p90"]
        assert low <= target["speedup"] <= high
        assert low > 1, "else which is faster was not told apart, and there is no speedup"


def test_a_speedup_is_of_the_rounds_in_which_both_took_turns(out: Path) -> None:
    for name in ("android-litert-int8", "linux-arm-onnxruntime-int8"):
        report = report_of(out, name)
        (target,) = report["targets"]
        pairs = zip(
            report["float_cpu"]["latency_ms"]["samples_ms"],
            target["latency_ms"]["samples_ms"],
            strict=True,
        )
        assert target["speedup"] == pytest.approx(median(slow / fast for slow, fast in pairs))


def test_a_time_stands_beside_the_machine_that_took_it(out: Path) -> None:
    report = report_of(out, "combined")
    page = (out / "combined" / "report.html").read_text()
    device, cpu = report["targets"][0]["device"], report["host"]["cpu"]
    assert f"on {cpu}; not measured on the device" in page
    assert f"<dt>Made for</dt><dd>{device}</dd>" in page
    assert f"<h3>{device}</h3>" not in page


def test_the_page_says_what_an_app_team_needs(out: Path) -> None:
    report = report_of(out, "combined")
    page = (out / "combined" / "report.html").read_text()
    assert "<p>Take android-litert-int8/model.tflite for" in page.replace(' class="which"', "")
    for target in report["targets"][:2]:
        assert target["first_use"]["load_ms"] > 0
        assert target["first_use"]["first_ms"] > 0
        assert target["takes"].startswith("image, float32 ")
        assert "deviation" in target["takes"]
        assert target["gives"].startswith("logits, float32 ")
        assert target["measured_at"] >= "2026-"
        assert "handwritten digits" in target["intended_use"]
    for word in ("First use", "Takes", "Gives", "Meant for", "Measured"):
        assert page.count(f"<dt>{word}</dt>") >= 2
    assert "<li>9</li></ol>" in page, "the labels"
    assert "speedup of iphone-coreml-w8a8" in page.partition('id="not-measured"')[2]


def test_core_ml_is_honest_about_what_linux_cannot_do(out: Path) -> None:
    target = report_of(out, "iphone-coreml-w8a8")["targets"][0]
    assert target["accuracy"]["test"]["images"] == 450
    assert target["accuracy_drop_pt"] <= 1.0
    if sys.platform != "darwin":
        assert target["evaluated"] == "reference"
        for figure in ("latency_ms", "speedup"):
            assert target[figure] is None
            assert "Apple" in target[f"{figure.removesuffix('_ms')}_missing"]


def onnx_grids(path: Path) -> dict[str, tuple[float, int]]:
    model = onnx.load(path)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    return {
        node.output[0]: (float(values[node.input[1]]), int(values[node.input[2]]) - 128)
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def tflite_grids(path: Path) -> dict[str, tuple[float, int]]:
    details = Interpreter(model_path=str(path)).get_tensor_details()
    return {d["name"]: d["quantization"] for d in details if d["dtype"] == np.int8}


def core_ml_grids(path: Path) -> dict[str, tuple[float, int]]:
    (block,) = load_spec(str(path)).mlProgram.functions["main"].block_specializations.values()
    constants = {
        op.outputs[0].name: op.attributes["val"].immediateValue.tensor
        for op in block.operations
        if op.type == "const"
    }

    def constant(op: Any, name: str) -> Any:
        found = op.inputs[name].arguments[0]
        return constants[found.name] if found.name else found.value.immediateValue.tensor

    grids = {}
    for op in (op for op in block.operations if op.type == "quantize"):
        scale = np.frombuffer(constant(op, "scale").bytes.values, np.float16)[0]
        kind = constant(op, "output_dtype").strings.values[0]
        zero_point = 0
        if "zero_point" in op.inputs:
            stored = constant(op, "zero_point")
            zero_point = np.frombuffer(stored.bytes.values, np.dtype(kind))[0]
        shift = 128 if kind == "uint8" else 0
        grids[op.outputs[0].name] = (float(scale), int(zero_point) - shift)
    return grids


def test_public_tools_read_the_same_grids_from_all_three_files(out: Path) -> None:
    """onnx, LiteRT's tensor details and the coremltools spec, with no code of ours between."""
    ours = onnx_grids(out / "linux-arm-onnxruntime-int8" / "model.onnx")
    assert len(ours) > 50
    assert all(scale == float(np.float16(scale)) for scale, _ in ours.values())
    tflite = tflite_grids(out / "android-litert-int8" / "model.tflite")
    assert {name: tflite.get(name) for name in ours} == ours
    core_ml = core_ml_grids(out / "iphone-coreml-w8a8" / "model.mlpackage")
    # coremltools drops the flatten, whose grid is that of what it flattens.
    assert set(ours) - set(core_ml) <= {list(ours)[-1]}
    assert core_ml == {name: ours[name] for name in core_ml}


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


CODE = {
    "android-litert-int8": {"kotlin/Classifier.kt", "kotlin/Photo.kt", "kotlin/GoldenTest.kt"},
    "linux-arm-onnxruntime-int8": {
        *("kotlin/Classifier.kt", "kotlin/Photo.kt", "kotlin/GoldenTest.kt"),
        *("cpp/classifier.hpp", "cpp/photo.hpp", "cpp/golden.cpp"),
    },
    "iphone-coreml-w8a8": {
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


def test_the_terminal_shows_progress_and_no_noise(out: Path) -> None:
    shown = (out.parent / "stdout.txt").read_text()
    for expected in ("train", "prune", "qat", "fold", "export", "measure", "reused", "top-1"):
        assert expected in shown
    for noise in ("Warning", "WARNING", "tensorflow", "cuda", "Traceback"):
        assert noise not in shown
    assert (out.parent / "stderr.txt").read_text() == ""
    assert (out / "run.log").stat().st_size > 0


def test_a_run_can_be_read_by_a_program(out: Path) -> None:
    arguments = ["run", DEVICE_RECIPES["onnx"], "--out", out, *settings(*NARROW)]
    done = pocketnest(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (found,) = json.loads(done.stdout)
    (target,) = found["targets"]
    assert Path(target["file"]).stat().st_size == target["size_bytes"]
    assert json.loads(Path(found["report"]).read_text())["passed"] is found["passed"] is True
    done = pocketnest(*arguments, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert pocketnest(*arguments, "--quiet", "--json").returncode == 2


def test_a_second_run_reuses_everything(out: Path) -> None:
    def times() -> dict[Path, int]:
        files = [p for p in (out / ".store").rglob("*") if p.is_file() and LATEST not in p.parts]
        return {p: p.stat().st_mtime_ns for p in files}

    before = times()
    # CPU time, since the clock on the wall also counts what else the machine does.
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = narrow_device_runs(out)
    assert done.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime < 60
    assert times() == before
    assert {s["status"] for s in report_of(out, "combined")["stages"]} == {"reused"}


def test_a_budget_does_not_retrain_and_a_missed_one_gives_exit_code_3(out: Path) -> None:
    before = set((out / ".store").iterdir())
    done = narrow_run([DEVICE_RECIPES["onnx"]], out, "budgets.size_mb=0.001")
    assert done.returncode == 3
    assert set((out / ".store").iterdir()) == before
    report = report_of(out, "linux-arm-onnxruntime-int8")
    assert report["passed"] is False
    (missed,) = [b for b in report["targets"][0]["budgets"] if b["passed"] is False]
    assert missed["metric"] == "size_mb"
    narrow_run(list(DEVICE_RECIPES.values()), out)  # as the other tests expect it


def test_the_baseline_of_a_gpu_elsewhere_is_compared_with(out: Path, tmp_path: Path) -> None:
    """As if another machine had measured the same weights, and one image answered otherwise."""
    copy, recipe = tmp_path / "artifacts", DEVICE_RECIPES["onnx"]
    shutil.copytree(out, copy)
    done = pocketnest("baseline", recipe, "--out", copy, *settings(*NARROW))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reused" in done.stdout
    (file,) = (copy / "baselines").iterdir()
    found = json.loads(file.read_text())
    answers, before = read_predictions(copy / recipe.stem / "predictions.safetensors"), "test"
    labels, named = answers[before].labels, found["named"]["test"]
    assert named == answers[before].float_model
    right = next(row for row, label in enumerate(labels) if named[row] == label)
    named[right] = (labels[right] + 1) % 10
    hits = sum(one == label for one, label in zip(named, labels, strict=True))
    found["accuracy"]["fp32"]["test"] |= {"top1": hits / 450, "top5": 1.0}
    found |= {"device": "Some GPU", "device_kind": "gpu"}
    found["host"]["gpu"] = "Some GPU"
    file.write_text(json.dumps(found))
    done = narrow_run([recipe], copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"float baseline of Some GPU, measured elsewhere: {file}" in done.stdout
    was, report = (report_of(place, recipe.stem) for place in (out, copy))
    baseline, target = report["baseline"], report["targets"][0]
    assert (baseline["device"], baseline["measured_here"]) == ("Some GPU", False)
    assert baseline["origin"]["file"] == file.name
    assert baseline["accuracy"]["test"]["top1"] == hits / 450
    assert report["float_cpu"]["accuracy"] == was["baseline"]["accuracy"]
    assert report["float_cpu"]["measured_here"] is True
    lost = target["accuracy_drop_pt"] - was["targets"][0]["accuracy_drop_pt"]
    assert lost == pytest.approx(-100 / 450)
    assert target["speedup"] == was["targets"][0]["speedup"]
    after = read_predictions(copy / recipe.stem / "predictions.safetensors")
    assert after["test"].float_model == named
    assert "measured elsewhere on " in (copy / recipe.stem / "report.html").read_text()
    assert pocketnest("verify", copy / recipe.stem).returncode == 0


def test_what_would_be_reused_is_explained(out: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (out / ".store").rglob("*")}
    changes = settings(*NARROW, "qat.train.epochs=3")
    done = pocketnest("run", DEVICE_RECIPES["onnx"], "--out", out, *changes, "--explain")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()[1:]]
    told = {stage: (does, why) for stage, does, why in lines}
    assert {told[name] for name in ("train", "baseline", "prune")} == {("reused", "unchanged")}
    assert told["qat"] == ("made", "qat.train.epochs: 2 before, 3 now")
    assert told["judge_prune"] == ("reused", "unchanged")
    assert told["fold"] == ("made", "made from qat anew")
    assert {p: p.stat().st_mtime_ns for p in (out / ".store").rglob("*")} == before


def test_a_run_is_verified_and_its_store_cleared(out: Path) -> None:
    assert pocketnest("verify", out / "combined").returncode == 0
    (out / ".store" / ".making-fold-1-x").mkdir()
    shown = pocketnest("gc", out, "--dry-run")
    assert ".making-fold-1-x" in shown.stdout, shown.stderr
    assert (out / ".store" / ".making-fold-1-x").exists()
    assert pocketnest("gc", out).returncode == 0
    assert not (out / ".store" / ".making-fold-1-x").exists()
    labels = out / "iphone-coreml-w8a8" / "labels.txt"
    text = labels.read_text()
    labels.write_text("another\n")
    done = pocketnest("verify", out / "combined")
    assert done.returncode == 1
    assert "labels.txt is not what was written" in done.stdout
    labels.write_text(text)
    assert pocketnest("verify", out / "combined").returncode == 0


@pytest.mark.parametrize("form", ["onnx", "tflite"])
def test_a_float_target(out: Path, form: str) -> None:
    done = narrow_run(
        [DEVICE_RECIPES[form]],
        out,
        "target.precision=float",
        "name=float-file",
        "budgets.size_mb=null",
        "budgets.accuracy_drop_pt=null",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    target = report_of(out, "float-file")["targets"][0]
    assert target["precision"] == "float"
    assert target["int8_coverage"] == 0.0
    assert target["scales_exact"] is None
    assert target["agreement"] == 1.0


def test_a_target_that_takes_camera_pixels(out: Path, tmp_path: Path) -> None:
    done = narrow_run([DEVICE_RECIPES["onnx"]], out, "target.input=uint8_rgb", "name=camera-pixels")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(out, "camera-pixels")
    stages = {stage["name"]: stage["status"] for stage in report["stages"]}
    assert {stages[name] for name in ("train", "baseline", "prune")} == {"reused"}
    assert {stages[name] for name in ("qat", "fold", "export")} == {"done"}
    target = report["targets"][0]
    assert target["input"] == "uint8_rgb"
    assert target["int8_coverage"] == 1.0
    assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 500
    assert target["agreement"] >= 0.995
    assert target["accuracy_drop_pt"] <= 1.0
    session = onnxruntime.InferenceSession(out / "camera-pixels" / "model.onnx")
    (image,) = session.get_inputs()
    assert (image.type, image.shape[1:]) == ("tensor(uint8)", [32, 32, 3])
    (logits,) = session.run(None, {image.name: np.zeros((1, 32, 32, 3), np.uint8)})
    assert logits.shape == (1, 10)
    assert pocketnest("bundle", out / "camera-pixels").returncode == 0
    bundle = unpacked(out / "camera-pixels" / "camera-pixels.zip", tmp_path)
    assert contract_in(bundle).input.mean is None
    assert "10 of 10 as expected" in golden(bundle).stdout


def test_a_benchmark_beside_other_tools(out: Path, tmp_path: Path) -> None:
    bars = tmp_path / "bars.yml"
    bars.write_text(
        "- {fast: [android-litert-int8], slow: [torch eager], at_least: 1.01}\n"
        "- {fast: [android-litert-int8], slow: [torch eager], at_least: 1000}\n"
    )
    options = ["--peers", "--rounds", "4", "--bars", bars, "--out", tmp_path]
    done = pocketnest("bench", out / "combined", *options)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "met" in done.stdout
    assert "missed" in done.stdout
    found = json.loads((tmp_path / "bench.json").read_text())
    contestants = {c["name"]: c for c in found["contestants"]}
    reports = {
        t["name"]: t for t in json.loads((out / "combined/report.json").read_text())["targets"]
    }
    assert set(reports) <= set(contestants)
    for name, target in reports.items():
        assert contestants[name]["accuracy"] == next(iter(target["accuracy"].values()))
    for timed in found["timed"]:
        assert "iphone-coreml-w8a8" not in timed["latency_ms"]
        assert {t["threads"] for t in timed["latency_ms"].values()} == {timed["threads"]}
        assert all(t["runs"] == 4 for t in timed["latency_ms"].values())
    assert "Apple" in contestants["iphone-coreml-w8a8"]["missing"]
    peers = [c for c in contestants.values() if c["made_in_s"] is not None]
    assert len(peers) == 9
    for peer in peers:
        assert peer["path"] is not None, peer["missing"]
        assert peer["accuracy"] is None or peer["accuracy"]["images"] == 450
    assert set(found["rooflines"]) == {"android-litert-int8", "linux-arm-onnxruntime-int8"}
    assert "<svg" in (tmp_path / "bench.svg").read_text()

    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "peers").iterdir()}
    again = pocketnest("bench", out / "combined", *options[:3], "--out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "peers").iterdir()} == kept
