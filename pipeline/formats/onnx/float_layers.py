"""Convolutions that stay in float between int8 layers, as ONNX Runtime leaves them."""

from __future__ import annotations

import onnx
from onnx import helper

from pipeline.formats import as_onnx

COPY = "Sum"
"""A sum of one tensor is that tensor, and no optimizer takes it out, as it does an Identity."""
_CLAMPS = {"Relu", "Clip"}


def keep_float(model: onnx.ModelProto) -> None:
    """Have ONNX Runtime leave float convolutions alone, in place.

    It takes one between a DequantizeLinear and a QuantizeLinear for a layer whose weights were
    forgotten, and rounds them to int8 when it loads the file, on scales of its own
    (`WeightBiasQuantization`, since 1.21). It knows them by what they read.

    before: x -> DequantizeLinear -> Conv(float) -> QuantizeLinear
    after:  x -> DequantizeLinear -> Sum -> Conv(float) -> QuantizeLinear
    """
    made_by, values = as_onnx.producers(model), as_onnx.constants(model)
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if _would_be_rounded(model, node, made_by, values):
            name = f"{node.output[0]}.input"
            kept.append(helper.make_node(COPY, [node.input[0]], [name]))
            node.input[0] = name
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _would_be_rounded(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    made_by: dict[str, onnx.NodeProto],
    values: dict[str, as_onnx.Array],
) -> bool:
    """Whether a node is a convolution with float weights that reads and gives int8 numbers."""
    if node.op_type != "Conv" or node.input[1] not in values:
        return False
    source = made_by.get(node.input[0])
    if source is None or source.op_type != "DequantizeLinear":
        return False
    readers = _readers(model, node.output[0])
    if len(readers) == 1 and readers[0].op_type in _CLAMPS:
        readers = _readers(model, readers[0].output[0])
    return any(reader.op_type == "QuantizeLinear" for reader in readers)


def _readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model whose numbers are float16, save for what goes in and comes out."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    OnnxModel(converted).topological_sort()  # it puts its conversions behind all others
    del converted.graph.value_info[:]  # of the inference that this took; runtimes do it again
    return converted
