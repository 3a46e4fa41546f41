"""The real recipes on a narrow network, through the real command line."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from safetensors.torch import load_file

from tests.cli import DEVICE_RECIPES, NARROW, command, environment, narrow_run, settings

MODEL_FILES = {
    "android-litert-int8": {"model.tflite"},
    "linux-arm-onnxruntime-int8": {"model.onnx"},
    "iphone-coreml-w8a8": {
        "model.mlpackage/Manifest.json",
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    },
}
BESIDE = {"report.json", "report.md", "recipe.yaml", "labels.txt"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one run of all three device recipes."""
    directory = tmp_path_factory.mktemp("run") / "artifacts"
    done = narrow_run(list(DEVICE_RECIPES.values()), directory)
    assert done.returncode == 0, done.stdout + done.stderr
    (directory.parent / "stdout.txt").write_text(done.stdout)
    (directory.parent / "stderr.txt").write_text(done.stderr)
    return directory


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
    assert files_below(out / "combined") == {"report.json", "report.md"}


def test_recipes_share_the_trained_stages(out: Path) -> None:
    stages = sorted(p.name.rsplit("-", 1)[0] for p in (out / ".store").iterdir())
    once = ["baseline", "fold", "prune", "qat", "train"]
    assert stages == sorted([*once, *["export"] * 3, *["measure"] * 3])


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
    assert list(stages) == ["train", "baseline", "prune", "qat", "fold", "export", "measure"]
    assert stages["prune"]["macs"] <= 0.5 * stages["baseline"]["macs"]
    assert stages["prune"]["params"] < stages["baseline"]["params"]
    assert [target["format"] for target in report["targets"]] == ["tflite", "onnx", "coreml"]
    for target in report["targets"]:
        assert target["int8_coverage"] == 1.0
        assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 500
        assert target["accuracy_drop_pt"] is None or target["accuracy_drop_pt"] <= 1.0


def test_runnable_targets_answer_as_the_program_does(out: Path) -> None:
    for target in report_of(out, "combined")["targets"][:2]:
        assert target["agreement"] >= 0.995
        assert target["latency_ms"]["median"] > 0
        assert target["speedup"] > 0


def test_core_ml_is_honest_about_what_linux_cannot_do(out: Path) -> None:
    target = report_of(out, "iphone-coreml-w8a8")["targets"][0]
    for figure in ("accuracy", "latency_ms", "speedup"):
        if target[figure] is None:
            assert "Apple" in target[f"{figure.removesuffix('_ms')}_missing"]


def test_the_terminal_shows_progress_and_no_noise(out: Path) -> None:
    shown = (out.parent / "stdout.txt").read_text()
    for expected in ("train", "prune", "qat", "fold", "export", "measure", "reused", "top-1"):
        assert expected in shown
    for noise in ("Warning", "WARNING", "tensorflow", "cuda", "Traceback"):
        assert noise not in shown
    assert (out.parent / "stderr.txt").read_text() == ""
    assert (out / "run.log").stat().st_size > 0


def test_a_second_run_reuses_everything(out: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (out / ".store").rglob("*") if p.is_file()}
    started = time.monotonic()
    done = narrow_run(list(DEVICE_RECIPES.values()), out)
    assert done.returncode == 0
    assert time.monotonic() - started < 60
    assert {p: p.stat().st_mtime_ns for p in (out / ".store").rglob("*") if p.is_file()} == before
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


def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(out: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    arguments = ["run", DEVICE_RECIPES["onnx"], "--out", again, *settings(*NARROW)]
    with subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, cwd=out.parent
    ) as process:
        deadline = time.monotonic() + 300
        while not list(again.glob(".store/.prune-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not list(again.glob("linux-arm*/report.json"))
    assert narrow_run([DEVICE_RECIPES["onnx"]], again).returncode == 0
    for stage in ("train", "prune", "qat"):
        ours, theirs = load_file(weights_of(out, stage)), load_file(weights_of(again, stage))
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours), stage
    assert (out / "linux-arm-onnxruntime-int8/model.onnx").read_bytes() == (
        again / "linux-arm-onnxruntime-int8/model.onnx"
    ).read_bytes()


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
