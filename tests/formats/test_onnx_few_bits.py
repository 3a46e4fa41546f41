"""Weights of 4 bits in ONNX files: real files beside the same ones without the option."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pipeline.formats import as_onnx
from pipeline.formats.description import Description
from pipeline.formats.file_facts import scales_exact
from pipeline.formats.format import Option
from pipeline.formats.formats import FORMATS
from pipeline.formats.onnx import blocks, delegates, describe, few_bits, gemm, head, layers
from pipeline.formats.onnx import file as onnx_format
from pipeline.recipe.weight_forms import WeightForm, block_of
from tests.making import networks, programs

pytestmark = pytest.mark.slow

OTHERS: dict[str, set[Option]] = {"opset17": {"opset17"}, "x86_amx": {"x86_amx"}}
"""Further options, by the name of a case; the others are forms."""
CASES = ("int4", "int4_blocks", "palette16", "palette64", programs.MIXED, *OTHERS)
_PARTS_BYTES, _BLOCKS_BYTES = 480, 900
"""More than a weight's nodes and constants take, without its table and multiples."""
_TABLE_BYTES, _SHARED_BYTES = 512, 2400


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A file of int8, and the same with the option."""

    source: programs.Written
    int8: Path
    few: Path


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(case: str) -> Pair:
        if case not in made:
            source = programs.few_bits("radix2", programs.MIXED if case in OTHERS else case)
            folder, options = tmp_path_factory.mktemp(case), OTHERS.get(case, set())
            int8, few = folder / "int8.onnx", folder / "few.onnx"
            onnx_format.write(source.program, int8, options=options)
            onnx_format.write(source.program, few, options={*options, "few_bits"})
            made[case] = Pair(source=source, int8=int8, few=few)
        return made[case]

    return pair


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of(request.param)


@pytest.fixture
def mixed(pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of(programs.MIXED)


def packed_of(path: Path) -> dict[str, as_onnx.Array]:
    """The weights of a file that are stored in 4 bits, as they are stored."""
    values = as_onnx.constants(onnx.load(path))
    return {n.removesuffix(".packed"): v for n, v in values.items() if n.endswith(".packed")}


def test_answers_are_those_of_int8(pair: Pair) -> None:
    for batch in (1, 3):
        int8, few = (programs.run(onnx_format.open_file(p), batch) for p in (pair.int8, pair.few))
        assert torch.equal(int8, few)
        assert int8.std() > 0


def test_every_tensor_is_that_of_int8(pair: Pair) -> None:
    images = programs.examples()[:2].numpy()
    int8, few = (onnx_format.trace(path, images) for path in (pair.int8, pair.few))
    assert int8.keys() == few.keys()
    assert all(np.array_equal(int8[name], few[name]) for name in int8)


def test_the_runtime_makes_the_same_operations_of_it(pair: Pair) -> None:
    int8, few = (onnx_format.inspect(path) for path in (pair.int8, pair.few))
    assert few.ops == int8.ops
    assert few.int8_macs == few.macs == int8.macs


def test_codes_and_scales_are_all_the_learned_ones(pair: Pair) -> None:
    int8, few = (onnx_format.inspect(path) for path in (pair.int8, pair.few))
    assert few == int8
    exact = scales_exact(pair.source.program, few)
    assert exact is not None
    assert exact.same == exact.total
    assert exact.codes_same == exact.codes_total > 0


def test_unpacked_it_is_the_int8_file(pair: Pair) -> None:
    int8, few = onnx.load(pair.int8), onnx.load(pair.few)
    assert list(few.graph.node) != list(int8.graph.node)
    few_bits.unpacked(few)
    assert list(few.graph.node) == list(int8.graph.node)
    found, wanted = (sorted(m.graph.initializer, key=lambda i: i.name) for m in (few, int8))
    assert found == wanted
    assert few_bits.unpacked(onnx.load(pair.int8)) == int8


def test_weights_of_few_values_take_half_a_byte(pair: Pair) -> None:
    model, packed = few_bits.unpacked(onnx.load(pair.few)), packed_of(pair.few)
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {made_by[node.input[1]].input[0] for node in convolutions}
    large = {name for name in weights if values[name].size > 4 * (_PARTS_BYTES + _TABLE_BYTES)}
    several = {name for name in large if blocks.blocks_of(values[name])}
    few = {name for name in large if len(np.unique(values[name])) <= 16} | several
    assert packed.keys() <= weights
    assert packed.keys() & large == few
    assert all(2 * stored.size == values[name].size for name, stored in packed.items())
    saved = pair.int8.stat().st_size - pair.few.stat().st_size
    halves = sum(stored.size for stored in packed.values())
    stored = as_onnx.constants(onnx.load(pair.few))
    multiples = [value.size for name, value in stored.items() if name.endswith(".multiples")]
    tables = sum(name.endswith(".table") for name in stored)
    spent = halves - saved - sum(multiples)
    most = len(packed) * _PARTS_BYTES + tables * _TABLE_BYTES
    if multiples:
        most += len(multiples) * (_BLOCKS_BYTES - _PARTS_BYTES) + _SHARED_BYTES
    assert 0 <= spent <= most


def test_a_form_of_4_bits_is_stored_so(pair_of: Callable[[str], Pair]) -> None:
    stored = {case: sum(v.size for v in packed_of(pair_of(case).few).values()) for case in CASES}
    whole = sum(codes.numbers for codes in onnx_format.inspect(pair_of("int4").int8).codes)
    assert stored["int4"] > 0.45 * whole
    assert stored["int4_blocks"] > 0.45 * whole
    assert stored["palette16"] > 0.45 * whole
    assert stored["palette64"] < 0.05 * whole
    assert stored["palette64"] < stored[programs.MIXED] < stored["int4"]


@pytest.mark.parametrize("form", ["int4", "int4_blocks", "palette16"])
def test_the_size_is_about_the_predicted_one(
    form: WeightForm, pair_of: Callable[[str], Pair]
) -> None:
    pair = pair_of(form)
    model = onnx.load(pair.int8)
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = [values[made_by[node.input[1]].input[0]] for node in convolutions]
    known, around = FORMATS["onnx"], FORMATS["onnx"].bytes["int8"]
    blocks_in = [w.shape[1] // block_of(w.shape[1]) for w in weights]
    predicted = sum(
        known.weight_bytes(form, w.size, len(w), count, False)
        for w, count in zip(weights, blocks_in, strict=True)
    )
    saved = pair.int8.stat().st_size - pair.few.stat().st_size
    assert saved == pytest.approx(sum(w.size for w in weights) - predicted, rel=0.01)
    whole = predicted + sum(around.channel * len(w) + around.layer for w in weights)
    assert whole == pytest.approx(pair.few.stat().st_size, rel=0.03)


def test_weights_of_4_bits_share_a_table(pair_of: Callable[[str], Pair]) -> None:
    def tables(case: str) -> list[as_onnx.Array]:
        values = as_onnx.constants(onnx.load(pair_of(case).few))
        return [value for name, value in values.items() if name.endswith(".table")]

    (table,) = tables("int4")
    assert table.shape == (256, 2)
    assert len(tables("palette16")) > 1
    assert {one.dtype.name for one in tables("x86_amx")} == {"int8", "uint8"}


def test_an_older_opset_has_it_too(pair_of: Callable[[str], Pair]) -> None:
    older, newer = pair_of("opset17"), pair_of(programs.MIXED)
    model = onnx.load(older.few)
    onnx.checker.check_model(model, full_check=True)
    assert [(i.domain, i.version) for i in model.opset_import] == [("", 17)]
    assert abs(older.few.stat().st_size - newer.few.stat().st_size) < 10


def test_without_optimization_answers_are_those_of_int8(mixed: Pair) -> None:
    options = onnx_format.session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    images = {as_onnx.INPUT: programs.examples()[:2].numpy()}
    int8, few = (
        onnxruntime.InferenceSession(str(p), options, providers=["CPUExecutionProvider"])
        for p in (mixed.int8, mixed.few)
    )
    assert np.array_equal(int8.run(None, images)[0], few.run(None, images)[0])


def test_layers_and_their_work_are_those_of_int8(mixed: Pair) -> None:
    int8, few = mixed.int8.read_bytes(), mixed.few.read_bytes()
    assert gemm.layer_work(few) == gemm.layer_work(int8)
    times = [layers.layer_times(content, rounds=1, threads=1) for content in (int8, few)]
    assert list(times[0]) == list(times[1])


def test_a_resized_file_is_that_of_int8(mixed: Pair) -> None:
    int8, few = mixed.int8.read_bytes(), mixed.few.read_bytes()
    first = "quantize_per_tensor_1"
    width = onnx_format.trace(mixed.int8, programs.examples()[:1].numpy())[first].shape[1]
    small = [onnx.load_from_string(layers.resized(one, {first: width - 1})) for one in (int8, few)]
    assert list(small[0].graph.node) == list(small[1].graph.node)
    found, wanted = (sorted(m.graph.initializer, key=lambda i: i.name) for m in small)
    assert found == wanted
    assert layers.resized(few, {first: width}) == few


def test_accelerators_are_told_of_the_operations_that_they_get(mixed: Pair) -> None:
    assert delegates.checked(mixed.few) == delegates.checked(mixed.int8)


def test_probabilities_and_a_description_leave_weights_as_they_are(
    mixed: Pair, tmp_path: Path
) -> None:
    about = Description(
        name="a network",
        text="what it is",
        classes=tuple(f"class {n}" for n in range(networks.CLASSES)),
        pixels=False,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        meaning="classes",
        output="probabilities",
    )
    found = []
    for path in (mixed.int8, mixed.few):
        copy = tmp_path / path.name
        shutil.copy(path, copy)
        head.add(copy, "softmax")
        describe.describe(copy, about)
        assert packed_of(copy).keys() == packed_of(path).keys()
        found.append((programs.run(onnx_format.open_file(copy)), describe.interface(copy)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def convolution(weight: as_onnx.Array) -> onnx.ModelProto:
    """A convolution of a weight (outputs, inputs, height, width), in the form of our files."""
    outputs, inputs, *window = weight.shape
    middle = np.full(outputs, 128 if weight.dtype == np.uint8 else 0, weight.dtype)
    constants = {
        "w": weight,
        "scales": np.linspace(0.5, 1, outputs, dtype=np.float32),
        "middle": middle,
        "one": np.float32(1),
        "step": np.float32(2000),
        "zero_point": np.uint8(128),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero_point"], ["data"]),
        helper.make_node("DequantizeLinear", ["w", "scales", "middle"], ["filter"], axis=0),
        helper.make_node("Conv", ["data", "filter"], ["sums"]),
        helper.make_node("QuantizeLinear", ["sums", "step", "zero_point"], ["y"]),
    ]
    sides = [6 - size for size in window]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", inputs, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", outputs, *sides])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opset = helper.make_opsetid("", as_onnx.OPSET)
    version = helper.find_min_ir_version_for([opset])
    return helper.make_model(graph, opset_imports=[opset], ir_version=version)


def answer(model: onnx.ModelProto) -> as_onnx.Array:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), onnx_format.session_options(1), ["CPUExecutionProvider"]
    )
    size = session.get_inputs()[0].shape[1]
    given = np.random.default_rng(0).integers(0, 256, (2, size, 5, 5)).astype(np.uint8)
    found: as_onnx.Array = session.run(None, {"x": given})[0]
    return found


def drawn(values: list[int], shape: tuple[int, ...], kind: type = np.int8) -> as_onnx.Array:
    """A weight that has each of `values`."""
    weight = np.resize(np.array(values), shape)
    return np.random.default_rng(1).permuted(weight).astype(kind)


SHAPE = (24, 16, 3, 3)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (list(range(-8, 8)), np.int8),
        ([0, 7], np.int8),
        ([-127, 0, 127], np.int8),
        ([-128, *range(-100, 100, 14)], np.int8),
        (list(range(112, 128)), np.int8),
        (list(range(120, 136)), np.uint8),
        (list(range(0, 256, 17)), np.uint8),
    ],
)
def test_any_16_values_come_back(values: list[int], kind: type) -> None:
    weight = drawn(values, SHAPE, kind)
    before, after = convolution(weight), convolution(weight)
    assert few_bits.pack(after) == ["w"]
    onnx.checker.check_model(after, full_check=True)
    assert after.ByteSize() < before.ByteSize() - weight.size / 2 + _PARTS_BYTES + _TABLE_BYTES
    assert np.array_equal(answer(before), answer(after))
    assert answer(before).std() > 0
    assert np.array_equal(as_onnx.constants(few_bits.unpacked(after))["w"], weight)


@pytest.mark.parametrize(
    ("weight"),
    [
        drawn(list(range(-8, 9)), SHAPE),
        drawn(list(range(-7, 8)), (11, 15, 3, 3)),
        drawn(list(range(-7, 8)), (8, 16, 1, 1)),
    ],
    ids=["17 values", "an odd number", "few weights"],
)
def test_other_weights_stay_int8(weight: as_onnx.Array) -> None:
    model = convolution(weight)
    assert few_bits.pack(model) == []
    assert model == convolution(weight)


def test_tables_of_the_same_bytes_are_told_apart_by_their_type() -> None:
    values = list(range(16, 32))
    signed, unsigned = drawn(values, SHAPE), drawn(values, SHAPE, np.uint8)
    model, other = convolution(signed), convolution(unsigned)
    both = onnx.compose.merge_models(
        onnx.compose.add_prefix(model, "a_"), onnx.compose.add_prefix(other, "b_"), io_map=[]
    )
    assert few_bits.pack(both) == ["a_w", "b_w"]
    values_of = as_onnx.constants(few_bits.unpacked(both))
    assert np.array_equal(values_of["a_w"], signed)
    assert np.array_equal(values_of["b_w"], unsigned)
    assert values_of["b_w"].dtype == np.uint8


def test_what_other_tools_gather_stays() -> None:
    model = convolution(drawn([-100, 0, 100], SHAPE))
    few_bits.pack(model)
    table = next(i for i in model.graph.initializer if i.name == "w.table")
    table.CopyFrom(numpy_helper.from_array(np.zeros((9, 2), np.float32), "w.table"))
    before = onnx.ModelProto()
    before.CopyFrom(model)
    assert few_bits.unpacked(model) == before
