"""Products of matrices for ONNX Runtime to be timed with, and what each layer of a file does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import following
from pipeline.formats import as_onnx
from pipeline.formats.file_facts import conv_macs
from pipeline.formats.gemm import Gemm, Product, Work, described, windowed
from pipeline.formats.onnx.few_bits import unpacked
from pipeline.formats.onnx.file import session_options

OPERATIONS: tuple[Product, ...] = ("matrix product", "1x1 convolution")
"""Both: ONNX Runtime has kernels for the one that it does not use for the other. With AMX it
multiplies matrices of integers three times as fast as it convolves images of them."""

_FOLLOWERS = {"Relu", "QuantizeLinear"}


def gemm_file(gemm: Gemm, precision: str) -> bytes:
    """An ONNX file of one product with random weights.

    Args:
        gemm: its operation and size.
        precision: `int8`, with uint8 activations and int8 weights as in our files (a
            matrix product gives out its int32 sums), or `float`.
    """
    build = _convolution if gemm.operation == "1x1 convolution" else _matmul
    nodes, constants, dims = build(gemm, precision)
    given = TensorProto.UINT8 if precision == "int8" else TensorProto.FLOAT
    made = TensorProto.INT32 if nodes[-1].op_type == "MatMulInteger" else given
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info(as_onnx.INPUT, given, dims)],
        [helper.make_tensor_value_info(as_onnx.OUTPUT, made, [None] * len(dims))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", as_onnx.OPSET)
    # By itself the helper takes the newest version of the format, which runtimes do not know yet.
    version = helper.find_min_ir_version_for([opset])
    model = helper.make_model(graph, opset_imports=[opset], ir_version=version)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


_Parts = tuple[list[onnx.NodeProto], dict[str, Any], list[int]]
"""Nodes, constants by name, and dimensions of the input."""


def _matmul(gemm: Gemm, precision: str) -> _Parts:
    dims, shape = [gemm.side**2, gemm.inputs], (gemm.inputs, gemm.outputs)
    if precision == "float":
        node = helper.make_node("MatMul", [as_onnx.INPUT, "weight"], [as_onnx.OUTPUT])
        return [node], {"weight": _weights(shape, precision)}, dims
    names = [as_onnx.INPUT, "weight", "zero_point", "weight_zero_point"]
    constants = {
        "weight": _weights(shape, precision),
        "zero_point": np.uint8(128),
        "weight_zero_point": np.int8(0),
    }
    return [helper.make_node("MatMulInteger", names, [as_onnx.OUTPUT])], constants, dims


def _convolution(gemm: Gemm, precision: str) -> _Parts:
    shape = (gemm.outputs, gemm.inputs, 1, 1)
    if precision == "float":
        node = helper.make_node("Conv", [as_onnx.INPUT, "weight"], [as_onnx.OUTPUT])
        dims = [1, gemm.inputs, gemm.side, gemm.side]
        return [node], {"weight": _weights(shape, precision)}, dims
    constants = {
        "scale": np.float32(1 / 64),
        "zero_point": np.uint8(128),
        "weight": _weights(shape, precision),
        "weight_scale": np.full(gemm.outputs, 1 / 1024, np.float32),
        "weight_zero_point": np.zeros(gemm.outputs, np.int8),
        "bias": np.zeros(gemm.outputs, np.int32),
    }
    grid, weight = ["scale", "zero_point"], ["weight", "weight_scale", "weight_zero_point"]
    # ONNX Runtime convolves integers with channels last, and takes these transpositions away.
    nodes = [
        helper.make_node("Transpose", [as_onnx.INPUT], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("QLinearConv", ["first", *grid, *weight, *grid, "bias"], ["last"]),
        helper.make_node("Transpose", ["last"], [as_onnx.OUTPUT], perm=[0, 2, 3, 1]),
    ]
    return nodes, constants, [1, gemm.side, gemm.side, gemm.inputs]


def _weights(shape: tuple[int, ...], precision: str) -> as_onnx.Array:
    random = np.random.default_rng(0)
    if precision == "int8":
        return random.integers(-127, 128, shape, np.int8)
    return random.normal(0, 1 / 32, shape).astype(np.float32)


def opened(content: bytes, threads: int) -> Callable[[], object]:
    """A run of a file on one image of noise, in a session as every other of ours.

    Args:
        content: an ONNX file from `onnx.write` or `gemm_file`.
        threads: of ONNX Runtime.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        content, session_options(threads), providers=["CPUExecutionProvider"]
    )
    image, random = session.get_inputs()[0], np.random.default_rng(1)
    # A batch of any size has a name instead of a number.
    shape = [size if isinstance(size, int) else 1 for size in image.shape]
    if image.type == "tensor(uint8)":
        fed: Any = random.integers(0, 256, shape, np.uint8)
    else:
        fed = random.standard_normal(shape, np.float32)

    def run() -> object:
        return session.run(None, {image.name: fed})

    return run


@following("an ONNX graph")
def layer_work(content: bytes) -> dict[str, Work]:
    """What every layer of a file computes, by the name that `onnx_layers.layer_times` gives it.

    Args:
        content: an ONNX file from `onnx.write`.
    """
    model = unpacked(onnx.load_from_string(content))
    shapes, values, made_by = _shapes(model), as_onnx.constants(model), as_onnx.producers(model)
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            readers[name].append(node)
    found: dict[str, Work] = {}
    for node in model.graph.node:
        if node.input[0] not in values:
            # The first node of a layer says what it is; a ReLU and the rounding follow.
            found.setdefault(_layer(node, readers), _work(node, shapes, values, made_by))
    return found


def _layer(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> str:
    """Name of what a node's output is after its ReLU and its rounding, where it has them."""
    following = readers.get(node.output[0], [])
    if len(following) == 1 and node.op_type != "QuantizeLinear":
        (reader,) = following
        if reader.op_type in _FOLLOWERS:
            return _layer(reader, readers)
    return str(node.output[0])


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shape of every tensor for one image, the batch left out."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:] for v in values}


def _work(
    node: onnx.NodeProto,
    shapes: dict[str, list[int]],
    values: dict[str, as_onnx.Array],
    made_by: dict[str, onnx.NodeProto],
) -> Work:
    before, after = shapes[node.input[0]], shapes[node.output[0]]
    if node.op_type != "Conv":
        return Work(op=node.op_type, shape=described(before, after), macs=0)
    rounded = made_by.get(node.input[1])
    weight = values[rounded.input[0] if rounded else node.input[1]].shape
    return Work(
        op=windowed("Conv", weight[2:], before[0] // weight[1], after[0]),
        shape=described(before, after),
        macs=conv_macs(weight, int(np.prod(after[1:]))),
    )
