"""ONNX files, read with onnx and run by ONNX Runtime."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from pipeline.base.errors import InputError
from pipeline.formats import as_onnx
from pipeline.formats.file_facts import FileFacts, scales_exact
from pipeline.formats.onnx import file as onnx_format
from pipeline.tasks.images.pixels import normalize
from tests.making import networks, programs

pytestmark = pytest.mark.slow

FLOAT_KERNELS = {
    *("Conv", "FusedConv", "Gemm", "MatMul", "Add", "Mul", "Sub", "Sigmoid", "Softmax"),
    *("ReduceMean", "GlobalAveragePool", "AveragePool", "Relu", "Clip", "Concat", "Transpose"),
}


@dataclass(frozen=True, kw_only=True)
class File:
    path: Path
    model: onnx.ModelProto
    facts: FileFacts
    source: programs.Written


Writer = Callable[..., File]


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    files: dict[int, File] = {}

    def write(source: programs.Written, *, pixels: bool = False) -> File:
        if id(source) not in files:
            path = tmp_path_factory.mktemp("onnx") / "model.onnx"
            onnx_format.write(source.program, path, pixels=pixels)
            model, facts = onnx.load(path), onnx_format.inspect(path)
            files[id(source)] = File(path=path, model=model, facts=facts, source=source)
        return files[id(source)]

    return write


@pytest.fixture(scope="module", params=programs.SHAPES)
def int8(request: pytest.FixtureRequest, write: Writer) -> File:
    return write(programs.quantized(request.param))


@pytest.fixture(scope="module")
def radix2(write: Writer) -> File:
    return write(programs.quantized("radix2"))


@pytest.fixture(scope="module")
def unquantized(write: Writer) -> File:
    return write(programs.unquantized("radix2"))


@pytest.fixture(scope="module")
def pixels(write: Writer) -> File:
    return write(programs.quantized("radix2", pixels=True), pixels=True)


@pytest.fixture(scope="module")
def float_pixels(write: Writer) -> File:
    return write(programs.unquantized("radix1", pixels=True), pixels=True)


def assert_valid(file: File) -> None:
    onnx.checker.check_model(file.model, full_check=True)
    assert [(i.domain, i.version) for i in file.model.opset_import] == [("", 21)]
    graph = file.model.graph
    assert [value.name for value in graph.input] == [as_onnx.INPUT]
    assert [value.name for value in graph.output] == [as_onnx.OUTPUT]
    used = {name for node in graph.node for name in node.input}
    assert {initializer.name for initializer in graph.initializer} <= used
    stored = file.path.read_bytes()
    for trace in (str(Path.cwd()), ".py", "stack_trace", "torch.nn", "site-packages"):
        assert trace.encode() not in stored


def test_is_a_valid_file_without_traces(int8: File) -> None:
    assert_valid(int8)


def test_activations_are_uint8_and_weights_int8(int8: File) -> None:
    values, made_by = as_onnx.constants(int8.model), as_onnx.producers(int8.model)
    for node in int8.model.graph.node:
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] not in values
        ):
            assert values[node.input[2]].dtype == np.uint8
        elif node.op_type == "Conv":
            assert values[made_by[node.input[1]].input[0]].dtype == np.int8


def test_biases_are_int32_on_the_accumulators_grid(int8: File) -> None:
    values, made_by = as_onnx.constants(int8.model), as_onnx.producers(int8.model)
    seen = 0
    for node in int8.model.graph.node:
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        seen += 1
        data, weight, bias = (made_by[name] for name in node.input)
        assert {data.op_type, weight.op_type, bias.op_type} == {"DequantizeLinear"}
        assert values[bias.input[0]].dtype == np.int32
        product = values[data.input[1]].astype(np.float64) * values[weight.input[1]]
        np.testing.assert_array_equal(values[bias.input[1]], product.astype(np.float32))
        if len(bias.input) > 2:
            assert not values[bias.input[2]].any()
    assert seen > 10


def test_gives_the_logits_of_the_program(int8: File) -> None:
    found = programs.run(onnx_format.open_file(int8.path))
    apart = programs.steps_apart(found, int8.source)
    assert apart.median() == 0
    assert apart.max() <= 5


def test_any_batch_gives_the_same_logits(int8: File) -> None:
    runnable = onnx_format.open_file(int8.path, threads=2)
    assert runnable.batch is None
    alone = programs.run(runnable)
    assert torch.equal(programs.run(runnable, batch=16), alone)
    assert torch.equal(programs.run(runnable, batch=5), alone)


def test_runs_in_integers_with_the_learned_scales(int8: File) -> None:
    assert not FLOAT_KERNELS & set(int8.facts.ops)
    assert int8.facts.ops["QuantizeLinear"] == 1
    assert int8.facts.ops["DequantizeLinear"] == 1
    assert int8.facts.int8_coverage == 1.0
    exact = scales_exact(int8.source.program, int8.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_an_older_opset_is_another_label_on_the_same_file(radix2: File, tmp_path: Path) -> None:
    path = tmp_path / "older.onnx"
    onnx_format.write(radix2.source.program, path, options={"opset17"})
    older = onnx.load(path)
    assert [(i.domain, i.version) for i in older.opset_import] == [("", 17)]
    assert older.graph == radix2.model.graph
    runs = [onnx_format.open_file(one) for one in (path, radix2.path)]
    one, other = (programs.run(runnable, batch=8) for runnable in runs)
    assert torch.equal(one, other)


def test_what_the_older_opset_lacks_is_refused() -> None:
    node = onnx.helper.make_node("Gelu", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "later", value[:1], value[1:])
    imported = onnx.helper.make_opsetid("", as_onnx.OPSET)
    with pytest.raises(InputError, match=r"target.opset: got 17; .*Gelu.*give 21"):
        onnx_format.as_older(onnx.helper.make_model(graph, opset_imports=[imported]))


def test_float_file_gives_the_logits_of_the_network(unquantized: File) -> None:
    assert_valid(unquantized)
    with torch.no_grad():
        wanted = unquantized.source.network(programs.examples())
    runnable = onnx_format.open_file(unquantized.path)
    for batch in (1, 16):
        assert (programs.run(runnable, batch) - wanted).abs().max() <= 1e-4
    assert unquantized.facts.int8_coverage == 0.0
    assert unquantized.facts.macs > 0
    assert scales_exact(unquantized.source.program, unquantized.facts) is None


def assert_takes_camera_images(file: File) -> None:
    assert_valid(file)
    image = file.model.graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.UINT8
    batch, *sizes = image.shape.dim
    assert batch.dim_param
    assert [size.dim_value for size in sizes] == [networks.SIDE, networks.SIDE, 3]


def camera_images(file: File) -> np.ndarray:
    return file.source.images.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def logits_of(path: Path, images: np.ndarray) -> torch.Tensor:
    """What an app gets that knows ONNX Runtime only."""
    options = onnxruntime.SessionOptions()
    # On x86 without VNNI the default kernels saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {as_onnx.INPUT: images})[0])


def test_pixels_go_in_as_the_camera_gives_them(pixels: File) -> None:
    assert_takes_camera_images(pixels)
    nodes, values = pixels.model.graph.node, as_onnx.constants(pixels.model)
    assert [node.op_type for node in nodes if as_onnx.INPUT in node.input] == ["Transpose"]
    (reader,) = (node for node in nodes if nodes[0].output[0] in node.input)
    assert reader.op_type == "DequantizeLinear"
    assert [values[name] for name in reader.input[1:]] == [1.0, 0]


def test_normalisation_runs_in_integers_too(pixels: File) -> None:
    ops = pixels.facts.ops
    assert (FLOAT_KERNELS | {"QuantizeLinear"}) & set(ops) == {"Transpose"}
    assert ops["Transpose"] == ops["DequantizeLinear"] == 1
    assert pixels.facts.int8_coverage == 1.0
    assert (1.0, -128) in pixels.facts.layers.values()
    exact = scales_exact(pixels.source.program, pixels.facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_pixels_give_the_logits_of_the_program(pixels: File) -> None:
    runnable = onnx_format.open_file(pixels.path)
    found = programs.run(runnable, fed=pixels.source.images)
    apart = programs.steps_apart(found, pixels.source)
    assert apart.median() == 0
    assert apart.max() <= 5
    assert torch.equal(programs.run(runnable, batch=5, fed=pixels.source.images), found)
    assert torch.equal(logits_of(pixels.path, camera_images(pixels)), found)


def test_float_file_gives_the_logits_of_the_network_for_pixels(float_pixels: File) -> None:
    assert_takes_camera_images(float_pixels)
    images = float_pixels.source.images
    normalization = programs.NORMALIZATION
    with torch.no_grad():
        wanted = float_pixels.source.network(
            normalize(images.to(torch.uint8), normalization.mean, normalization.std)
        )
    found = programs.run(onnx_format.open_file(float_pixels.path), batch=16, fed=images)
    assert (found - wanted).abs().max() <= 1e-4
    assert torch.equal(logits_of(float_pixels.path, camera_images(float_pixels)), found)
    assert set(float_pixels.facts.ops) >= {"Transpose", "Cast"}


def test_a_file_of_pixels_refuses_normalised_images(pixels: File) -> None:
    with pytest.raises(ValueError, match="whole numbers 0 to 255"):
        onnx_format.open_file(pixels.path).set_input(programs.examples().numpy())


def test_the_trace_of_pixels_begins_with_the_image(pixels: File) -> None:
    images = pixels.source.images[:2]
    found = onnx_format.trace(pixels.path, images.numpy())
    np.testing.assert_array_equal(next(iter(found.values())), images.numpy() - 128)


# A gate that cannot fail proves nothing: each of these files has one thing wrong.


def spoiled(file: File, path: Path, change: Callable[[onnx.ModelProto], None]) -> File:
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    change(model)
    onnx.save(model, path)
    return File(path=path, model=model, facts=onnx_format.inspect(path), source=file.source)


def nudge_activation(model: onnx.ModelProto) -> None:
    quantizes = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    scale = as_onnx.constants(model)[quantizes[5].input[1]]
    quantizes[5].input[1] = "nudged"
    as_onnx.set_constant(model, "nudged", np.nextafter(scale, np.float32(1)))


def nudge_weight(model: onnx.ModelProto) -> None:
    made_by, values = as_onnx.producers(model), as_onnx.constants(model)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    weight = made_by[conv.input[1]]
    scales = values[weight.input[1]].copy()
    scales[0] = np.nextafter(scales[0], np.float32(1))
    weight.input[1] = "nudged"
    as_onnx.set_constant(model, "nudged", scales)


@pytest.mark.parametrize("change", [nudge_activation, nudge_weight])
def test_the_smallest_change_of_one_scale_shows(
    change: Callable[[onnx.ModelProto], None], radix2: File, tmp_path: Path
) -> None:
    file = spoiled(radix2, tmp_path / "m.onnx", change)
    exact = scales_exact(file.source.program, file.facts)
    assert exact is not None
    assert exact.same < exact.total


def float_conv(model: onnx.ModelProto) -> None:
    made_by = as_onnx.producers(model)
    conv = [n for n in model.graph.node if n.op_type == "Conv"][1]
    quantize = made_by[made_by[conv.input[0]].input[0]]
    assert quantize.op_type == "QuantizeLinear"
    conv.input[0] = quantize.input[0]


def test_one_float_convolution_shows(radix2: File, tmp_path: Path) -> None:
    file = spoiled(radix2, tmp_path / "m.onnx", float_conv)
    assert 0.5 < file.facts.int8_coverage < 1.0
    assert file.facts.macs == radix2.facts.macs
    assert file.facts.ops["Conv"] > 0


def swap_colours(model: onnx.ModelProto) -> None:
    made_by, values = as_onnx.producers(model), as_onnx.constants(model)
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    name = made_by[conv.input[1]].input[0]
    stored = next(i for i in model.graph.initializer if i.name == name)
    stored.CopyFrom(numpy_helper.from_array(values[name][:, ::-1].copy(), name))


def test_weights_and_logits_show_swapped_colours(radix2: File, tmp_path: Path) -> None:
    file = spoiled(radix2, tmp_path / "m.onnx", swap_colours)
    assert replace(file.facts, codes=radix2.facts.codes) == radix2.facts
    exact = scales_exact(file.source.program, file.facts)
    assert exact is not None
    assert exact.same == exact.total
    assert exact.codes_same < exact.codes_total
    apart = programs.steps_apart(programs.run(onnx_format.open_file(file.path)), file.source)
    assert apart.median() > 0
    assert apart.max() > 20


def read_as_bgr(model: onnx.ModelProto) -> None:
    as_onnx.set_constant(model, "bgr", np.array([2, 1, 0]))
    model.graph.node[0].input[0] = "swapped"
    swap = helper.make_node("Gather", [as_onnx.INPUT, "bgr"], ["swapped"], axis=3)
    model.graph.node.insert(0, swap)


def test_the_logits_show_pixels_read_as_bgr(pixels: File, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = onnx.ModelProto()
    model.CopyFrom(pixels.model)
    read_as_bgr(model)
    onnx.save(model, path)
    found = programs.run(onnx_format.open_file(path), fed=pixels.source.images)
    apart = programs.steps_apart(found, pixels.source)
    assert apart.median() > 0
    assert apart.max() > 20
