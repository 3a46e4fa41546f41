"""Convolutions that ONNX Runtime is to compute as products of matrices, in real files."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from pipeline.formats import as_onnx
from pipeline.formats.onnx import amx
from pipeline.formats.onnx import file as onnx_format
from tests.making import programs

pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Files:
    """A file as written, the same with its deep convolutions changed, and images for both."""

    before: Path
    after: Path
    images: Tensor


@pytest.fixture(scope="module", params=[False, True], ids=["normalized", "pixels"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("gemm_form")
    before, after = folder / "before.onnx", folder / "after.onnx"
    source = programs.quantized("radix2", pixels=request.param)
    shutil.copy(programs.file_of("onnx", pixels=request.param), before)
    model = onnx.load(before)
    assert len(amx.gemm_form(model)) == 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, after)
    return Files(before=before, after=after, images=source.images)


def test_logits_stay_the_same_at_every_batch(files: Files) -> None:
    for batch in (1, 3, 16):
        before = programs.run(onnx_format.open_file(files.before), batch, files.images)
        after = programs.run(onnx_format.open_file(files.after), batch, files.images)
        assert torch.equal(before, after)
        assert before.std() > 0


def test_every_layer_keeps_its_name_grid_and_numbers(files: Files) -> None:
    layers = onnx_format.inspect(files.before).layers
    assert onnx_format.inspect(files.after).layers == layers
    images = files.images[:3].numpy()
    before, after = (onnx_format.trace(path, images) for path in (files.before, files.after))
    assert before.keys() == after.keys() == layers.keys()
    for name, found in before.items():
        assert np.array_equal(found, after[name]), name


def test_the_runtime_makes_the_same_operations_of_it(files: Files) -> None:
    before, after = (onnx_format.inspect(path) for path in (files.before, files.after))
    assert after.ops == before.ops
    assert after.int8_macs == before.int8_macs == before.macs


def test_only_deep_convolutions_with_few_positions_change(files: Files) -> None:
    model = onnx.load(files.after)
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    kinds: dict[str, set[tuple[int, ...]]] = {"int8": set(), "uint8": set()}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = made_by[node.input[1]]
            stored, zero_point = values[weight.input[0]], values[weight.input[2]]
            kinds[stored.dtype.name].add(stored.shape)
            assert zero_point.dtype == stored.dtype
            assert set(zero_point) == {128 if stored.dtype == np.uint8 else 0}
    assert min(np.prod(shape[1:]) for shape in kinds["uint8"]) >= amx.MIN_DEPTH
    assert any(np.prod(shape[1:]) < amx.MIN_DEPTH for shape in kinds["int8"])


def convolution(outputs: int, side: int, groups: int = 1, depth: int = 256) -> onnx.ModelProto:
    """A pointwise convolution of uint8 and int8, in the form of our files."""
    rng = np.random.default_rng(outputs)
    constants = {
        "weight": rng.integers(-128, 128, (outputs, depth // groups, 1, 1)).astype(np.int8),
        "scales": np.linspace(0.5, 1, outputs, dtype=np.float32),
        "zeros": np.zeros(outputs, np.int8),
        "one": np.float32(1),
        "step": np.float32(2000),
        "middle": np.uint8(128),
        "data_zero_point": np.uint8(3),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "data_zero_point"], ["data"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["filter"], axis=0),
        helper.make_node("Conv", ["data", "filter"], ["sums"], group=groups, kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["sums", "step", "middle"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["n", depth, side, side])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    opset = helper.make_opsetid("", as_onnx.OPSET)
    version = helper.find_min_ir_version_for([opset])
    return helper.make_model(graph, opset_imports=[opset], ir_version=version)


def test_leaves_grouped_and_wide_convolutions_and_wrongly_computed_numbers_of_outputs() -> None:
    assert amx.gemm_form(convolution(64, side=7)) == ["sums"]
    assert amx.gemm_form(convolution(64, side=22)) == ["sums"]
    assert amx.gemm_form(convolution(64, side=23)) == []
    assert amx.gemm_form(convolution(64, side=7, depth=252)) == []
    assert amx.gemm_form(convolution(64, side=7, groups=2, depth=512)) == []
    changed = [n for n in range(1, 67) if amx.gemm_form(convolution(n, side=7))]
    assert changed == [*range(1, 17), *range(32, 49), *range(64, 67)]


@pytest.mark.parametrize("outputs", [1, 10, 16, 32, 40, 48, 64, 80])
@pytest.mark.parametrize("side", [1, 6, 11])
def test_what_is_changed_is_computed_exactly(outputs: int, side: int) -> None:
    model = convolution(outputs, side)
    values = as_onnx.constants(model)
    assert amx.gemm_form(model) == ["sums"]
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), onnx_format.session_options(1), ["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(side)
    data = rng.integers(0, 256, (3, 256, side, side)).astype(np.uint8)
    sums = np.einsum(
        "oc,nchw->nohw", values["weight"][:, :, 0, 0].astype(int), data.astype(int) - 3
    )
    factors = (values["scales"] / values["step"])[:, None, None]
    steps = np.rint(sums.astype(np.float32) * factors) + 128
    assert np.array_equal(session.run(None, {"x": data})[0], steps.clip(0, 255))
