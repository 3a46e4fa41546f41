"""Runs after the first one: reused, explained, changed in a target or a budget."""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pipeline.base.console import Advance
from pipeline.base.profile import PAGE, TRACE
from pipeline.base.store import LATEST
from pipeline.commands.bench.peer_files import peer_files
from pipeline.commands.bundle.write import contract_in
from pipeline.stages.finished_run import float_network, open_runs
from pipeline.tasks.predictions import read_predictions
from tests.making.bundles import golden, unpacked
from tests.making.cli import (
    narrow_device_runs,
    narrow_run,
    pocketnest,
)
from tests.making.narrow_output import report_of
from tests.making.recipes import DEVICE_RECIPES, NARROW, settings

pytestmark = pytest.mark.slow


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
    done = narrow_device_runs(out, "--profile")
    assert done.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime < 60
    assert times() == before
    assert {s["status"] for s in report_of(out, "combined")["stages"]} == {"reused"}
    spans = json.loads((out / TRACE).read_text())["traceEvents"]
    kinds = {span["cat"] for span in spans if span["ph"] == "X"}
    assert kinds == {"stage", "wait", "import", "decode", "hash", "render"}
    assert f"{out / PAGE}" in done.stdout


def test_a_budget_does_not_retrain_and_a_missed_one_gives_exit_code_3(out: Path) -> None:
    before = set((out / ".store").iterdir())
    limits = ("budgets.size_mb=0.001", "budgets.download_mb=0.001")
    done = narrow_run([DEVICE_RECIPES["onnx"]], out, *limits)
    assert done.returncode == 3
    assert set((out / ".store").iterdir()) == before
    report = report_of(out, "linux-arm-onnxruntime-int8")
    assert report["passed"] is False
    (target,) = report["targets"]
    missed = [b["metric"] for b in target["budgets"] if b["passed"] is False]
    assert missed == ["size_mb", "download_mb"]
    assert [one["compressor"] for one in target["downloads"]] == ["deflate", "zstd"]
    assert target["downloads"][0]["bytes"] == target["download_bytes"] < target["size_bytes"]
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
    before = read_predictions(copy / recipe.stem / "predictions.safetensors")["test"]
    labels, named = before.labels.tolist(), found["named"]["test"]
    assert named == before.float_model.tolist()
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
    assert after["test"].float_model.tolist() == named
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


def asked_for(title: str, total: int) -> AbstractContextManager[Advance]:
    raise AssertionError(f"{title}: they are there")


def test_a_benchmark_beside_other_tools(out: Path, tmp_path: Path) -> None:
    bars = tmp_path / "bars.yml"
    bars.write_text(
        "- {fast: [android-litert-int8], slow: [torch eager], at_least: 1.01}\n"
        "- {fast: [android-litert-int8], slow: [torch eager], at_least: 100000}\n"
        "- {within_pt: 1.0, format: tflite, bytes_at_most: 1}\n"
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
    alike = {(one["bound_pt"], one["format"]) for one in found["within"]}
    assert alike == {(bound, form) for bound in (0.5, 1.0) for form in ("onnx", "tflite")}
    for name, target in reports.items():
        assert contestants[name]["drop_pt"] == target["accuracy_drop_pt"]
    assert set(found["rooflines"]) == {"android-litert-int8", "linux-arm-onnxruntime-int8"}
    assert "<svg" in (tmp_path / "bench.svg").read_text()

    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "peers").iterdir()}
    runs = open_runs(out / "combined")
    model, dataset = float_network(runs), runs[0].dataset()
    again = peer_files(runs[0], model, dataset, tmp_path / "peers", asked_for)
    assert {peer.name for peer in again} == {peer["name"] for peer in peers}
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "peers").iterdir()} == kept
