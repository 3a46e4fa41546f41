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
from ai_edge_litert.interpreter import Interpreter

from pipeline.formats import as_onnx
from pipeline.formats.file_facts import FileFacts, scales_exact
from pipeline.formats.tflite import file as tflite_file
from pipeline.tasks.images.pixels import normalize
from tests.making import networks, programs

pytestmark = pytest.mark.slow

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


def write(folder: Path, source: programs.Written, variant: str, *, pixels: bool = False) -> File:
    """Write without a network, from an empty working directory."""
    path, work = folder / "model.tflite", folder / "work"
    work.mkdir()
    before = translations()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "get", offline)
        patch.setattr(socket.socket, "connect", offline)
        patch.chdir(work)
        tflite_file.write(source.program, path, pixels=pixels)
        cwd_kept = Path.cwd() == work
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert len(model.subgraphs) == 1
    return File(
        path=path,
        graph=model.subgraphs[0],
        facts=tflite_file.inspect(path),
        source=source,
        variant=variant,
        left_behind=sorted(os.listdir(work)),
        cwd_kept=cwd_kept,
        onnx2tf_kept=translations() == before,
    )


@pytest.fixture(scope="module", params=programs.SHAPES)
def int8(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> File:
    source = programs.quantized(request.param)
    return write(tmp_path_factory.mktemp("tflite"), source, request.param)


@pytest.fixture(scope="module")
def unquantized(tmp_path_factory: pytest.TempPathFactory) -> File:
    return write(tmp_path_factory.mktemp("tflite"), programs.unquantized("radix2"), "radix2")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> File:
    source = programs.quantized("radix2", pixels=True)
    return write(tmp_path_factory.mktemp("tflite"), source, "radix2", pixels=True)


@pytest.fixture(scope="module")
def float_pixels(tmp_path_factory: pytest.TempPathFactory) -> File:
    source = programs.unquantized("radix1", pixels=True)
    return write(tmp_path_factory.mktemp("tflite"), source, "radix1", pixels=True)


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


def test_layout_is_changed_nowhere(int8: File) -> None:
    assert "TRANSPOSE" not in int8.facts.ops
    assert "PADV2" not in int8.facts.ops


def test_xnnpack_takes_the_whole_network_up_to_radix_2(int8: File) -> None:
    assert int8.facts.partitions is not None
    # XNNPACK has no int8 softmax, and one stands in every block.
    blocks = sum(programs.SHORT)
    assert int8.facts.partitions == 1 or int8.variant == "radix4"
    assert int8.facts.partitions <= 1 + 2 * blocks


def test_runs_in_integers_with_the_learned_scales(int8: File) -> None:
    assert int8.facts.int8_coverage == 1.0
    exact = scales_exact(int8.source.program, int8.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_gives_the_logits_of_the_program(int8: File) -> None:
    runnable = tflite_file.open_file(int8.path)
    assert runnable.batch == 1
    apart = programs.steps_apart(programs.run(runnable), int8.source)
    assert apart.median() == 0
    assert apart.max() <= 5


def test_float_file_gives_the_logits_of_the_network(unquantized: File) -> None:
    assert_left_nothing(unquantized)
    with torch.no_grad():
        wanted = unquantized.source.network(programs.examples())
    assert (programs.run(tflite_file.open_file(unquantized.path)) - wanted).abs().max() <= 1e-4
    assert unquantized.facts.int8_coverage == 0.0
    assert unquantized.facts.macs > 0
    assert "TRANSPOSE" not in unquantized.facts.ops


def camera_images(file: File) -> np.ndarray:
    return file.source.images.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def logits_of(path: Path, images: np.ndarray) -> torch.Tensor:
    """What an app gets that knows LiteRT only."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert image["dtype"] == np.uint8
    assert list(image["shape"]) == [1, networks.SIDE, networks.SIDE, 3]
    parts = []
    for pixels in images[:, None]:
        interpreter.set_tensor(image["index"], pixels)
        interpreter.invoke()
        parts.append(torch.from_numpy(interpreter.get_tensor(logits["index"]).copy()))
    return torch.cat(parts)


def test_pixels_go_in_as_the_camera_gives_them(pixels: File) -> None:
    graph, kinds = pixels.graph, schema.TensorType
    image = graph.tensors[graph.inputs[0]]
    assert (image.type, list(image.quantization.scale)) == (kinds.UINT8, [1.0])
    assert list(image.quantization.zeroPoint) == [0]
    assert pixels.facts.ops["QUANTIZE"] == pixels.facts.ops["DEQUANTIZE"] == 1
    first = graph.operators[0]
    assert list(first.inputs) == list(graph.inputs)
    shifted = graph.tensors[first.outputs[0]]
    assert (shifted.type, list(shifted.quantization.scale)) == (kinds.INT8, [1.0])
    assert list(shifted.quantization.zeroPoint) == [-128]
    floats = [i for i, tensor in enumerate(graph.tensors) if tensor.type == kinds.FLOAT32]
    assert floats == list(graph.outputs)


def test_normalisation_runs_in_xnnpacks_integers_too(pixels: File) -> None:
    assert_left_nothing(pixels)
    assert {"TRANSPOSE", "PADV2", "CAST"}.isdisjoint(pixels.facts.ops)
    interpreter = tflite_file.open_file(pixels.path)._interpreter
    assert [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE") == 1
    assert pixels.facts.int8_coverage == 1.0
    exact = scales_exact(pixels.source.program, pixels.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_pixels_give_the_logits_of_the_program(pixels: File) -> None:
    found = programs.run(tflite_file.open_file(pixels.path), fed=pixels.source.images)
    apart = programs.steps_apart(found, pixels.source)
    assert apart.median() == 0
    assert apart.max() <= 5
    assert torch.equal(logits_of(pixels.path, camera_images(pixels)), found)


def test_the_logits_show_pixels_fed_as_bgr(pixels: File) -> None:
    found = logits_of(pixels.path, camera_images(pixels)[..., ::-1].copy())
    apart = programs.steps_apart(found, pixels.source)
    assert apart.median() > 0
    assert apart.max() > 20


def test_float_file_gives_the_logits_of_the_network_for_pixels(float_pixels: File) -> None:
    assert_left_nothing(float_pixels)
    images, normalization = float_pixels.source.images, programs.NORMALIZATION
    with torch.no_grad():
        wanted = float_pixels.source.network(
            normalize(images.to(torch.uint8), normalization.mean, normalization.std)
        )
    found = programs.run(tflite_file.open_file(float_pixels.path), fed=images)
    assert (found - wanted).abs().max() <= 1e-4
    assert torch.equal(logits_of(float_pixels.path, camera_images(float_pixels)), found)
    assert float_pixels.facts.ops["CAST"] == 1
    assert "TRANSPOSE" not in float_pixels.facts.ops


def test_a_file_of_pixels_refuses_normalised_images(pixels: File) -> None:
    with pytest.raises(ValueError, match="whole numbers 0 to 255"):
        tflite_file.open_file(pixels.path).set_input(programs.examples()[:1].numpy())


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnx2tf

    image = onnx.helper.make_tensor_value_info(as_onnx.INPUT, onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "empty", [image], [image])
    inside: list[Path] = []

    def fail(**_: object) -> NoReturn:
        inside.append(Path.cwd())
        raise ValueError("no translation")

    monkeypatch.setattr(as_onnx, "to_onnx", lambda program: onnx.helper.make_model(graph))
    monkeypatch.setattr(onnx2tf, "convert", fail)
    monkeypatch.chdir(tmp_path)
    before = translations()
    with pytest.raises(ValueError, match="no translation"):
        tflite_file.write(programs.quantized("radix2").program, tmp_path / "m.tflite")
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
    exact = scales_exact(int8.source.program, tflite_file.inspect(path))
    assert exact is not None
    assert exact.same < exact.total
