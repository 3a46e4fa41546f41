"""TFLite files, read from their flatbuffer and run by LiteRT."""

import importlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import requests
import torch
from ai_edge_litert import schema_py_generated as schema

from pipeline.formats import qdq, tflite
from pipeline.formats.facts import FileFacts, scales_exact
from tests import programs

ONNX2TF_OPS = ("QuantizeLinear", "DequantizeLinear", "MaxPool", "Add", "Mul", "Conv")


@dataclass(frozen=True, kw_only=True)
class File:
    path: Path
    graph: Any
    facts: FileFacts
    source: programs.Written
    variant: str
    left_behind: list[str]
    """Files in the working directory after writing."""
    cwd_kept: bool
    onnx2tf_kept: bool


def translations() -> list[object]:
    return [importlib.import_module(f"onnx2tf.ops.{op}").make_node for op in ONNX2TF_OPS]


def offline(*_: object, **__: object) -> NoReturn:
    raise AssertionError("writing a file asked for the network")


def write(folder: Path, source: programs.Written, variant: str) -> File:
    """Write without a network, from an empty working directory."""
    path, work = folder / "model.tflite", folder / "work"
    work.mkdir()
    before = translations()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "get", offline)
        patch.setattr(socket.socket, "connect", offline)
        patch.chdir(work)
        tflite.write(source.program, path)
        cwd_kept = Path.cwd() == work
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert len(model.subgraphs) == 1
    return File(
        path=path,
        graph=model.subgraphs[0],
        facts=tflite.inspect(path),
        source=source,
        variant=variant,
        left_behind=sorted(os.listdir(work)),
        cwd_kept=cwd_kept,
        onnx2tf_kept=translations() == before,
    )


@pytest.fixture(scope="module", params=programs.VARIANTS)
def int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    source = programs.quantized(request.param)
    return write(tmp_path_factory.mktemp("tflite"), source, request.param)


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> File:
    return write(tmp_path_factory.mktemp("tflite"), programs.unquantized("radix2"), "radix2")


def assert_left_nothing(file: File) -> None:
    assert file.cwd_kept
    assert file.onnx2tf_kept
    assert file.left_behind == []


def test_writing_leaves_nothing_behind(int8: File) -> None:
    assert_left_nothing(int8)


def test_only_image_and_logits_are_float(int8: File) -> None:
    graph = int8.graph
    assert int8.facts.ops["QUANTIZE"] == int8.facts.ops["DEQUANTIZE"] == 1
    first, last = graph.operators[0], graph.operators[-1]
    assert list(first.inputs) == list(graph.inputs)
    assert list(last.outputs) == list(graph.outputs)
    made = {int(i) for op in graph.operators for i in op.outputs} - {int(graph.outputs[0])}
    assert {graph.tensors[i].type for i in made} == {schema.TensorType.INT8}
    outside = {int(graph.inputs[0]), int(graph.outputs[0])}
    for index, tensor in enumerate(graph.tensors):
        kinds = {schema.TensorType.INT8, schema.TensorType.INT32}  # biases and shapes
        assert (tensor.type == schema.TensorType.FLOAT32) == (index in outside)
        assert index in outside or tensor.type in kinds


def test_layout_is_changed_nowhere_up_to_radix_2(int8: File) -> None:
    assert ("TRANSPOSE" in int8.facts.ops) == (int8.variant == "radix4")
    assert "PADV2" not in int8.facts.ops


def test_xnnpack_takes_the_whole_network_up_to_radix_2(int8: File) -> None:
    interpreter = tflite.open_file(int8.path)._interpreter
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    partitions = names.count("DELEGATE")
    assert partitions >= 1 if int8.variant == "radix4" else partitions == 1


def test_runs_in_integers_with_the_learned_scales(int8: File) -> None:
    assert int8.facts.int8_coverage == 1.0
    exact = scales_exact(int8.source.program, int8.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_gives_the_logits_of_the_program(int8: File) -> None:
    runnable = tflite.open_file(int8.path)
    assert runnable.batch == 1
    apart = programs.steps_apart(programs.run(runnable), int8.source)
    assert apart.median() == 0
    assert apart.max() <= 5


def test_float_file_gives_the_logits_of_the_network(unquantized: File) -> None:
    assert_left_nothing(unquantized)
    with torch.no_grad():
        wanted = unquantized.source.network(programs.images())
    assert (programs.run(tflite.open_file(unquantized.path)) - wanted).abs().max() <= 1e-4
    assert unquantized.facts.int8_coverage == 0.0
    assert unquantized.facts.macs > 0
    assert "TRANSPOSE" not in unquantized.facts.ops


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnx2tf

    image = onnx.helper.make_tensor_value_info(qdq.INPUT, onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "empty", [image], [image])
    inside: list[Path] = []

    def fail(**_: object) -> NoReturn:
        inside.append(Path.cwd())
        raise ValueError("no translation")

    monkeypatch.setattr(qdq, "to_onnx", lambda program: onnx.helper.make_model(graph))
    monkeypatch.setattr(onnx2tf, "convert", fail)
    monkeypatch.chdir(tmp_path)
    before = translations()
    with pytest.raises(ValueError, match="no translation"):
        tflite.write(programs.quantized("radix2").program, tmp_path / "m.tflite")
    assert Path.cwd() == tmp_path
    assert translations() == before
    assert os.listdir(tmp_path) == []
    assert inside != [tmp_path]
    assert not inside[0].exists()


@pytest.mark.parametrize("constant", [False, True], ids=["activation", "weight"])
def test_the_smallest_change_of_one_scale_shows(int8: File, constant: bool, tmp_path: Path) -> None:
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(int8.path.read_bytes(), 0)
    graph = model.subgraphs[0]
    conv = next(op for op in graph.operators if len(op.inputs) == 3)
    tensor = graph.tensors[conv.inputs[1] if constant else conv.outputs[0]]
    scales = np.array(tensor.quantization.scale, np.float32)
    scales[0] = np.nextafter(scales[0], np.float32(1))
    tensor.quantization.scale = scales
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path = tmp_path / "m.tflite"
    path.write_bytes(bytes(builder.Output()))
    exact = scales_exact(int8.source.program, tflite.inspect(path))
    assert exact is not None
    assert exact.same < exact.total
