"""Files of device services and of other tools: a real one where the tool runs here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pipeline.base.errors import InputError
from pipeline.measure.device.imports import benchmark_result
from pipeline.measure.device.imports.on_device import TimedFile, on_device
from pipeline.measure.device.imports.read import read
from tests.making.device_files import AI_HUB, CALL


def written(folder: Path, name: str, content: str | bytes | dict[str, Any]) -> Path:
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def result_file() -> bytes:
    found = benchmark_result.message()()
    latency, memory, misc = found.latency_metrics, found.memory_metrics, found.misc_metrics
    latency.avg_ms, latency.median_ms, latency.min_ms, latency.max_ms = 2.92, 2.875, 2.75, 4.75
    latency.init_ms, latency.first_inference_ms, latency.average_warm_up_ms = 17.5, 3.75, 3.71
    memory.init_footprint_kb, memory.overall_footprint_kb = 31160, 40050
    misc.model_size_mb, misc.num_runs, misc.num_warmup_runs = 16.9008, 343, 135
    return bytes(found.SerializeToString())


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile of ONNX Runtime with four runs."""
    folder = tmp_path_factory.mktemp("profile")
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["a"], name="stem"),
        helper.make_node("Erf", ["a"], ["logits"], name="gate"),
    ]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [4, 3, 3, 3], np.ones(108))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4, 30, 30])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    for _ in range(4):
        session.run(None, {"image": np.zeros((1, 3, 32, 32), np.float32)})
    return Path(session.end_profiling()).read_text()


def test_a_profile_job_of_ai_hub(tmp_path: Path) -> None:
    found = read(written(tmp_path, "job.json", AI_HUB))
    (timing,) = found.timings
    assert found.tool == "Qualcomm AI Hub"
    assert (timing.unit, timing.threads) == ("cpu+npu", None)
    assert timing.samples_ms == (3.652, 4.205, 10.003)
    assert timing.typical_ms == 4.205
    assert timing.load_ms == 1374.293
    assert timing.peak_mb == pytest.approx(166.711296)
    assert [(one.name, one.unit, one.ms) for one in found.layers] == [
        ("stem", "npu", 0.127),
        ("gate", "cpu", 0.023),
        ("head", "npu", None),
    ]
    assert "layers by compute unit: 1 on CPU, 2 on NPU" in found.notes
    assert json.loads(found.raw.text) == AI_HUB


def test_text_of_benchmark_model(tmp_path: Path) -> None:
    found = read(written(tmp_path, "log.txt", CALL))
    (timing,) = found.timings
    assert (found.format, found.model, found.megabytes) == ("tflite", "model.tflite", 16.9008)
    assert (timing.unit, timing.threads, timing.runs) == ("cpu", 2, 50)
    assert (timing.median_ms, timing.mean_ms) == (29.4, pytest.approx(29.5034))
    assert (timing.min_ms, timing.max_ms, timing.first_ms) == (27.275, 31.899, 35.123)
    assert (timing.delegate, timing.delegated, timing.fell_back) == ("XNNPACK", "part", None)
    assert [(one.name, one.operation, one.ms) for one in found.layers] == [
        ("[stem/conv]:0", "CONV_2D", 19.5),
        ("[gate]:1", "MUL", 9.5),
    ]


def test_text_of_a_delegate_that_took_nothing(tmp_path: Path) -> None:
    refused = CALL.replace(
        "Explicitly applied XNNPACK delegate, and the model graph will be partially executed by "
        "the delegate w/ 1 delegate kernels.",
        "Though GPU delegate is explicitly applied, the model graph will not be executed by the "
        "delegate.",
    )
    assert refused != CALL
    (timing,) = read(written(tmp_path, "log.txt", refused)).timings
    assert (timing.unit, timing.delegated) == ("gpu", "none")
    assert timing.fell_back == "GPU took nothing of the graph"


def test_text_of_several_calls(tmp_path: Path) -> None:
    more = CALL.replace("Num threads: [2]", "Num threads: [4]")
    found = read(written(tmp_path, "log.txt", CALL + more))
    assert [timing.threads for timing in found.timings] == [2, 4]
    with pytest.raises(InputError, match="several calls on the same unit and threads"):
        read(written(tmp_path, "log.txt", CALL + CALL))
    other = more.replace("tmp/model.tflite", "tmp/other.tflite")
    with pytest.raises(InputError, match=r"of several files .*other\.tflite"):
        read(written(tmp_path, "log.txt", CALL + other))


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    found = read(written(tmp_path, "log.txt", CALL.replace("model.tflite", "\x1b[31mred")))
    assert found.model == r"\x1b[31mred"


def test_the_result_file_of_benchmark_model(tmp_path: Path) -> None:
    found = read(written(tmp_path, "results.pb", result_file()))
    (timing,) = found.timings
    assert (timing.unit, timing.runs) == ("unknown", 343)
    assert timing.median_ms == 2.875
    assert timing.mean_ms == pytest.approx(2.92)
    assert (timing.load_ms, timing.first_ms) == (17.5, 3.75)
    assert timing.peak_mb == pytest.approx(40050 * 1024 / 1e6)
    assert found.raw.encoding == "base64"


def test_the_result_file_has_the_published_numbers() -> None:
    """Written by hand: field 2 (a message) with field 1 (a float), and field 4 with field 2."""
    content = bytes.fromhex("12050d0000403f2203109606")
    found = benchmark_result.parsed(content)
    assert found is not None
    assert (found.latency_metrics.avg_ms, found.misc_metrics.num_runs) == (0.75, 790)


def test_a_profile_of_onnx_runtime(tmp_path: Path, profile: str) -> None:
    found = read(written(tmp_path, "profile.json", profile))
    (timing,) = found.timings
    events = json.loads(profile)
    runs = [event["dur"] / 1e3 for event in events if event["name"] == "model_run"]
    assert len(runs) == 4
    assert (timing.unit, timing.first_ms, timing.samples_ms) == ("cpu", runs[0], tuple(runs[1:]))
    assert timing.load_ms is not None
    assert {layer.operation for layer in found.layers} >= {"Conv", "Erf"}
    assert {layer.unit for layer in found.layers} == {"cpu"}
    conv = next(layer for layer in found.layers if layer.operation == "Conv")
    taken = [e["dur"] / 1e3 for e in events if e.get("args", {}).get("op_name") == "Conv"]
    assert conv.ms == pytest.approx(sum(taken[1:]) / 3)


def test_nodes_of_several_providers_stand_by_their_units(tmp_path: Path, profile: str) -> None:
    events = json.loads(profile)
    for event in events:
        if event.get("args", {}).get("op_name") == "Conv":
            event["args"]["provider"] = "QNNExecutionProvider"
    found = read(written(tmp_path, "profile.json", json.dumps(events)))
    assert found.timings[0].unit == "cpu+npu"


def test_what_is_none_of_these_is_one_line(tmp_path: Path, profile: str) -> None:
    old = {**AI_HUB, "execution_summary": {"estimated_inference_time": 3652}}
    zero = json.dumps(AI_HUB).replace("[3652, 4205, 10003]", "[0, 4205]")
    no_detail = {"execution_summary": AI_HUB["execution_summary"]}
    cut = CALL[: CALL.index("INFO: Inference timings")]
    empty = benchmark_result.message()()
    empty.latency_metrics.min_ms = 2.0
    faults: list[tuple[str | bytes | dict[str, Any], str]] = [
        (old, "without all_inference_times.*older version.*profile again"),
        (zero, "damaged, or of a version that is not known"),
        (zero.replace("[0, 4205]", f"[1{'0' * 400}]"), "damaged.*too large"),
        (no_detail, "damaged, or of a version that is not known.*execution_detail"),
        ({"some": "json"}, "of no source that is known; give the JSON of a profile job"),
        (profile[: len(profile) // 2], "damaged, or of a version that is not known"),
        ("[]", "of no source that is known"),
        ("Hello", "of no source that is known"),
        (b"", "of no source that is known"),
        (bytes(range(256)), "of no source that is known"),
        (b"PK\x03\x04" + bytes(40), "of no source that is known"),
        (cut, "did not come to its end"),
        (bytes(empty.SerializeToString()), r"without a time of an inference \(avg_ms\)"),
        (result_file()[:20], "of no source that is known"),
        (result_file() + b"\x58\x01", "of no source that is known"),  # a field 11
        ("[" * 5000, "nested too deeply"),
    ]
    for number, (content, said) in enumerate(faults):
        with pytest.raises(InputError, match=said) as caught:
            read(written(tmp_path, f"fault-{number}", content))
        assert "\n" not in str(caught.value)
        assert f"fault-{number}" in str(caught.value)


def test_xcodes_report_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a performance report of Xcode.*pocketnest apple"):
        read(tmp_path / "model.mlperf")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "missing.json")


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes, module_folder: Path) -> None:
    path = module_folder / "any"
    path.write_bytes(content)
    said = ""
    try:
        assert math.isfinite(read(path).timings[0].typical_ms)
    except InputError as error:
        said = str(error)
    assert said.startswith(f"{path}: ") or not said


TIMED = TimedFile(
    name="android", format="tflite", precision="int8", sha256="0" * 64, size=16_900_812
)


def test_a_record_of_an_import_says_whose_word_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, "log.txt", CALL)
    record = on_device(read(path), path, device="Pixel 8", timed=TIMED)
    (file,) = record.files
    assert (record.source.kind, record.source.file) == ("imported", "log.txt")
    assert record.device.name == "Pixel 8"
    assert (file.name, file.sha256, file.precision) == ("android", "0" * 64, "int8")
    assert [check.missing for check in file.golden] == [
        "the imported file holds no answers, times alone"
    ]
    assert "that android was timed is the importer's word" in record.notes
    assert record.raw[0].text == CALL


def test_a_record_without_a_run_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "job.json", AI_HUB)
    (file,) = (record := on_device(read(path), path, device=None, timed=None)).files
    assert (file.name, file.sha256, file.format) == ("job.json", None, None)
    assert record.device.name == "a device of Qualcomm AI Hub"


def test_times_of_another_file_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "log.txt", CALL)
    other = TimedFile(**{**vars(TIMED), "size": 16_000_000})
    with pytest.raises(InputError, match=r"a file of 16\.9008 MB, and that of android has 16 MB"):
        on_device(read(path), path, device=None, timed=other)
    onnx_file = TimedFile(**{**vars(TIMED), "format": "onnx"})
    with pytest.raises(InputError, match="times tflite files, and android is a onnx file"):
        on_device(read(path), path, device=None, timed=onnx_file)
