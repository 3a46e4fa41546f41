"""The real recipes on a narrow network, through the real command line."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from coremltools.models.utils import load_spec

from pipeline.stages.graph import STAGES
from pipeline.stages.judge import JUDGES
from tests.making.narrow_output import MODEL_FILES, files_below, report_of

pytestmark = pytest.mark.slow

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
    apart = {
        "times",
        "sparsify",
        "sensitivity",
        "arm64",
        *(judge.name for judge in JUDGES.values()),
    }
    assert list(stages) == [s.name for s in STAGES if s.name not in apart]
    assert stages["prune"]["top1"] > 0.9
    assert stages["fold"]["top1"] > 0.9
    assert stages["prune"]["macs"] <= 0.5 * stages["baseline"]["macs"]
    assert stages["prune"]["params"] < stages["baseline"]["params"]
    assert [target["format"] for target in report["targets"]] == ["tflite", "onnx", "coreml"]
    for target in report["targets"]:
        assert target["int8_coverage"] == 1.0
        exact = target["scales_exact"]
        assert exact["same"] == exact["total"] > 500
        assert exact["codes_same"] == exact["codes_total"] > 50_000
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
