"""Weights of few bits in TFLite files: the program's grid, and 4 bits where XNNPACK has kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema

from pipeline.formats import as_onnx
from pipeline.formats.description import Description
from pipeline.formats.file_facts import codes_of, learned_scales, scales_exact
from pipeline.formats.gemm import Gemm
from pipeline.formats.tflite import delegates, gemm, head, layers
from pipeline.formats.tflite import file as tflite_file
from pipeline.formats.tflite.few_bits import in_few_bits
from pipeline.formats.tflite.flatbuffer import kind_of, pack, share_zero_points
from pipeline.formats.tflite.int4 import packed, unpacked
from pipeline.formats.tflite.weights import LayerWeights, layer_weights, stored, with_weights
from tests.making import programs

VARIANT = "radix1"
FORMS = ("int4", "int4_blocks", "palette16", "palette64", programs.MIXED)


def read(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(content, 0)


@pytest.mark.parametrize("count", [1, 2, 15, 16])
def test_two_numbers_to_a_byte_the_first_below(count: int) -> None:
    codes = np.resize(np.array([-8, 7, 3, 0, -1], np.int8), count)
    bytes_of = packed(codes)
    assert bytes_of.size == -(-count // 2)
    assert bytes_of[0] == 0x78 if count > 1 else bytes_of[0] == 0x08
    assert np.array_equal(unpacked(bytes_of, count), codes)


def product(codes: np.ndarray, *, bias: int = 5, activation: int = 0, side: int = 1) -> bytes:
    """A file of one convolution 1x1 of weights (out, in)."""
    outputs, inputs = codes.shape
    shape = Gemm(operation="1x1 convolution", side=side, inputs=inputs, outputs=outputs)
    model = read(gemm.gemm_file(shape, "int8"))
    graph = model.subgraphs[0]
    _, weight, biases = (graph.tensors[i] for i in graph.operators[0].inputs)
    fill(model, weight, codes)
    fill(model, biases, np.full(outputs, bias, np.int32))
    for tensor in (weight, biases):
        tensor.quantization.scale = 16 * tensor.quantization.scale
    graph.operators[0].builtinOptions.fusedActivationFunction = activation
    return share_zero_points(pack(model))


def fill(model: Any, tensor: Any, values: np.ndarray) -> None:
    content = np.ascontiguousarray(values).tobytes()
    model.buffers[tensor.buffer].data = np.frombuffer(content, np.uint8)


def small_codes(outputs: int, inputs: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-7, 8, (outputs, inputs), np.int8)


def answers(content: bytes) -> np.ndarray:
    """What a file of int8 gives for eight images of noise, and that XNNPACK ran the whole."""
    runnable = tflite_file.TFLiteRunnable(content, threads=1)
    assert runnable.partitions() == 1
    assert runnable.outside() == {}
    interpreter = runnable._interpreter
    image, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    random, found = np.random.default_rng(1), []
    for _ in range(8):
        numbers = random.integers(-128, 128, image["shape"], image["dtype"])
        interpreter.set_tensor(image["index"], numbers)
        interpreter.invoke()
        found.append(interpreter.get_tensor(output["index"]))
    return np.concatenate(found)


@pytest.mark.parametrize("activation", [0, schema.ActivationFunctionType.RELU])
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 64), (64, 34), (33, 256)])
def test_a_product_of_4_bits_gives_the_same_numbers(
    activation: int, outputs: int, inputs: int
) -> None:
    before = product(small_codes(outputs, inputs), activation=activation)
    after = share_zero_points(in_few_bits(before))
    model = read(after)
    (op,) = model.subgraphs[0].operators
    weight = model.subgraphs[0].tensors[op.inputs[1]]
    assert kind_of(model, op) == "FULLY_CONNECTED"
    assert (weight.type, list(weight.shape)) == (schema.TensorType.INT4, [outputs, inputs])
    assert op.builtinOptions.keepNumDims
    assert op.builtinOptions.fusedActivationFunction == activation
    assert np.array_equal(stored(model, weight), small_codes(outputs, inputs))
    assert len(model.buffers) == len(read(before).buffers)
    assert len(before) - len(after) > outputs * inputs // 2 - 200
    assert np.array_equal(answers(after), answers(before))
    assert len(np.unique(answers(before))) > 10


FITTING = 2**31 // 16 - 7 * 512 * 64


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(product(small_codes(32, 63)), id="odd number of inputs"),
        pytest.param(product(small_codes(32, 64), side=2), id="several pixels"),
        pytest.param(product(2 * small_codes(32, 64)), id="more than 4 bits"),
        pytest.param(product(small_codes(2, 40)), id="no bytes saved"),
        pytest.param(product(small_codes(32, 64), bias=2**28), id="sums that overflow"),
    ],
)
def test_others_stay_as_they_are(content: bytes) -> None:
    assert in_few_bits(content) == content


def test_the_largest_bias_that_fits_is_added_up_right() -> None:
    before = product(small_codes(32, 64), bias=FITTING)
    after = share_zero_points(in_few_bits(before))
    assert len(after) < len(before)
    assert np.array_equal(answers(after), answers(before))


def as_converted(codes: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scales that the converter finds for weights (out, in)."""
    largest = np.abs(codes.astype(np.float64)).max(1)
    scales = np.float32(scale * largest / 127)
    return np.rint(codes * scale / scales[:, None]).astype(np.int8), scales


SCALE = 2.0**-9


def chain(codes: np.ndarray) -> bytes:
    """Two convolutions in a row that share weights and biases, as the converter leaves them."""
    content = product(codes, bias=0)
    model = read(content)
    graph = model.subgraphs[0]
    first = graph.operators[0]
    found, scales = as_converted(codes, SCALE)
    weight, bias = (graph.tensors[i] for i in first.inputs[1:])
    fill(model, weight, found)
    weight.quantization.scale = scales
    bias.quantization.scale = scales * graph.tensors[0].quantization.scale[0]
    second, output = schema.OperatorT(), schema.TensorT()
    vars(second).update(vars(first))
    vars(output).update(vars(graph.tensors[graph.outputs[0]]))
    graph.tensors[graph.outputs[0]].name, output.name = b"first", b"second"
    graph.tensors.append(output)
    second.inputs = [graph.outputs[0], *first.inputs[1:]]
    second.outputs = graph.outputs = [len(graph.tensors) - 1]
    graph.operators.append(second)
    return share_zero_points(pack(model))


def weights(codes: np.ndarray, scale: float) -> LayerWeights:
    scales, bias = np.full(len(codes), scale, np.float32), np.zeros(len(codes), np.float32)
    return LayerWeights(codes=codes[:, :, None, None], scales=scales, bias=bias)


def test_shared_weights_are_parted_where_they_differ() -> None:
    codes = small_codes(16, 16)
    codes[:, 0] = 6
    codes = np.clip(codes, -6, 6)
    content = chain(codes)
    learned = {"first": weights(codes, SCALE), "second": weights(2 * codes, SCALE / 2)}
    model = read(with_weights(content, learned))
    graph = model.subgraphs[0]
    for op, wanted in zip(graph.operators, learned.values(), strict=True):
        weight, bias = (graph.tensors[i] for i in op.inputs[1:])
        assert np.array_equal(stored(model, weight), wanted.codes.transpose(0, 2, 3, 1))
        assert np.array_equal(weight.quantization.scale, wanted.scales)
        scale = graph.tensors[op.inputs[0]].quantization.scale[0]
        assert np.array_equal(bias.quantization.scale, scale * wanted.scales)
    alike = read(with_weights(content, dict.fromkeys(learned, learned["first"])))
    first, second = (list(op.inputs[1:]) for op in alike.subgraphs[0].operators)
    assert first == second
    assert len(alike.subgraphs[0].tensors) == len(read(content).subgraphs[0].tensors)


def test_weights_of_another_layer_are_refused() -> None:
    codes = np.clip(small_codes(16, 16), -6, 6)
    learned = {"first": weights(codes, SCALE), "second": weights(codes[::-1], SCALE)}
    with pytest.raises(RuntimeError, match="second: the weight in the TFLite file is not that"):
        with_weights(chain(codes), learned)
    learned = {"first": learned["first"], "third": learned["second"]}
    with pytest.raises(RuntimeError, match="third: no operation of the TFLite file has these"):
        with_weights(chain(codes), learned)


def test_other_biases_are_refused() -> None:
    codes = np.clip(small_codes(16, 16), -6, 6)
    other = replace(weights(codes, SCALE), bias=np.ones(16, np.float32))
    with pytest.raises(RuntimeError, match="first: the bias in the TFLite file is not that"):
        with_weights(chain(codes), {"first": other, "second": weights(codes, SCALE)})


@dataclass(frozen=True, kw_only=True)
class Files:
    """A program in a file of int8 and in one of few bits."""

    source: programs.Written
    form: str
    int8: Path
    few: Path

    @property
    def both(self) -> Sequence[Path]:
        return (self.int8, self.few)


@pytest.fixture(scope="module", params=FORMS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    source, folder = programs.few_bits(VARIANT, request.param), tmp_path_factory.mktemp("few")
    int8, few = folder / "int8.tflite", folder / "few.tflite"
    tflite_file.write(source.program, int8)
    tflite_file.write(source.program, few, options={"few_bits"})
    return Files(source=source, form=request.param, int8=int8, few=few)


@pytest.mark.slow
def test_scales_and_weights_are_the_programs(files: Files) -> None:
    for path in files.both:
        facts = tflite_file.inspect(path)
        exact = scales_exact(files.source.program, facts)
        assert exact is not None
        assert exact.same == exact.total > 300
        assert exact.codes_same == exact.codes_total > 10_000
        assert facts.int8_coverage == 1.0
        assert (facts.partitions, facts.outside) == (1, {})


@pytest.mark.slow
def test_4_bits_are_the_smaller_file(files: Files) -> None:
    before, after = (path.stat().st_size for path in files.both)
    fewer = read(files.few.read_bytes())
    tensors = [t for t in fewer.subgraphs[0].tensors if t.type == schema.TensorType.INT4]
    if files.form in {"palette16", "palette64"}:
        assert (tensors, after) == ([], before)
        return
    numbers = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    assert numbers > 2000
    # The operations' options take other bytes.
    assert before - after == pytest.approx(numbers / 2, rel=0.15)


@pytest.mark.slow
def test_every_tensor_is_the_same_as_in_int8(files: Files) -> None:
    images = programs.examples()[:4].numpy()
    before, after = (tflite_file.trace(path, images) for path in files.both)
    names = learned_scales(files.source.program)[0]
    found = [name for name in names if name in before]
    assert len(found) > 20
    for name in found:
        assert np.array_equal(after[name], before[name]), name


@pytest.mark.slow
def test_gives_the_logits_of_the_program(files: Files) -> None:
    for path in files.both:
        apart = programs.steps_apart(programs.run(tflite_file.open_file(path)), files.source)
        assert apart.median() == 0
        assert apart.max() <= 5


@pytest.mark.slow
def test_faint_channels_leave_room_for_16_times_their_sums(files: Files) -> None:
    model = read(files.int8.read_bytes())
    graph = model.subgraphs[0]
    weighted = [op for op in graph.operators if len(op.inputs) == 3]
    biases = {int(op.inputs[2]): int(op.inputs[1]) for op in weighted}
    largest = [
        int(np.abs(stored(model, graph.tensors[bias])).max())
        for bias, weight in biases.items()
        if np.abs(stored(model, graph.tensors[weight]).astype(int)).max() <= 7
    ]
    assert max(largest, default=0) <= 2**26
    if files.form == "int4":
        assert max(largest) > 2**24


@pytest.mark.slow
def test_zeros_stay_zeros(files: Files) -> None:
    learned = layer_weights(as_onnx.to_onnx(files.source.program))
    wanted = {one.key: int((one.codes == 0).sum()) for one in learned.values()}
    model = read(files.few.read_bytes())
    graph = model.subgraphs[0]
    read_by = {int(op.inputs[1]) for op in graph.operators if len(op.inputs) == 3}
    found = sum(int((stored(model, graph.tensors[i]) == 0).sum()) for i in read_by)
    assert found == sum(wanted.values()) > 100


@pytest.mark.slow
def test_layers_are_cut_timed_and_counted_as_in_int8(files: Files) -> None:
    before, after = (path.read_bytes() for path in files.both)
    work = [gemm.layer_work(content) for content in (before, after)]
    names = [name for name in work[0] if name in work[1]]
    assert len(names) > 20
    assert all(work[0][name].macs == work[1][name].macs for name in names)
    assert set(layers.layer_times(after, 1, 1)) == {name for name, _ in layers.parts(after)}
    for _, part in layers.parts(after):
        assert tflite_file.TFLiteRunnable(part, threads=1).outside() == {}
    products = [name for name in names if work[1][name].op == "FULLY_CONNECTED"]
    narrow = next(n for n in (*products, *names) if work[0][n].op == "CONV_2D 1x1")
    for width in (4, 3):
        wanted = shapes(layers.resized(before, {narrow: width}))
        assert shapes(layers.resized(after, {narrow: width})) == wanted


def shapes(content: bytes) -> dict[str, list[int]]:
    """Of what every operation of a program's name makes; XNNPACK takes them all."""
    runnable = tflite_file.TFLiteRunnable(content, threads=1)
    assert (runnable.partitions(), runnable.outside()) == (1, {})
    runnable.set_input(programs.examples()[:1].numpy())
    runnable.invoke()
    graph = read(content).subgraphs[0]
    made = [graph.tensors[op.outputs[0]] for op in graph.operators]
    return {t.name.decode(): list(t.shape) for t in made if t.name.startswith(b"quantize")}


@pytest.mark.slow
def test_what_stands_around_the_network_goes_with_it(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(files.few.read_bytes())
    logits = programs.run(tflite_file.open_file(path))
    head.add(path, "softmax")
    about = Description(
        name="net", text="a net", classes=tuple("abcde"), pixels=False, meaning="chances",
        mean=(0.5,) * 3, std=(0.2,) * 3, output="probabilities",
    )  # fmt: skip
    tflite_file.describe(path, about)
    chances = programs.run(tflite_file.open_file(path))
    assert torch.allclose(chances, logits.softmax(1), atol=1e-6)
    assert tflite_file.inspect(path).codes == tflite_file.inspect(files.few).codes


@pytest.mark.slow
def test_accelerators_take_4_bits_or_not(files: Files) -> None:
    found = {one.name: one for one in delegates.checked(files.few)}
    has_4_bits = files.form in {"int4", "int4_blocks", programs.MIXED}
    assert found["GPU delegate"].left == ((delegates.FOUR_BITS,) if has_4_bits else ())
    assert found["Qualcomm QNN in LiteRT"].verdict == "all"
    assert found["MediaTek NeuroPilot in LiteRT"].verdict == "all"


@pytest.mark.slow
def test_int8_files_stay_what_they_are() -> None:
    program = programs.quantized(VARIANT).program
    content = programs.file_of("tflite", VARIANT).read_bytes()
    learned = layer_weights(as_onnx.to_onnx(program))
    assert all(one.is_found_again for one in learned.values())
    assert with_weights(content, learned) == content
    assert in_few_bits(content) == content
    wanted = {codes_of(one.codes) for one in learned.values()}
    assert wanted == set(tflite_file.inspect(programs.file_of("tflite", VARIANT)).codes)
