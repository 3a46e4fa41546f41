"""Layers that stay in float between int8 layers, as TensorFlow's converter leaves them.

The converter quantizes whatever stands between two tensors that were rounded, weights and all, and
has no way to be told otherwise. It leaves alone what reads a tensor that was not rounded, so that
an operation which it has in float only is put before every float layer, and taken out of the file
that comes of it.

    mark(model)                        # ONNX, before it is converted
    content = without_marks(content)   # TFLite, after
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from pipeline.formats import as_onnx
from pipeline.formats.tflite.flatbuffer import pack

MARK = "Floor"
"""No network has it: `networks.lowering` knows no such operation."""
_CLAMPS = {"Relu", "Clip"}
_ROUNDS = {"QuantizeLinear", "DequantizeLinear"}


def mark(model: onnx.ModelProto) -> None:
    """Put a mark before each float layer that reads what an int8 layer gives or reads, in place.

    before: x -> QuantizeLinear -> DequantizeLinear -> Conv(float)
    after:  x -> QuantizeLinear -> DequantizeLinear -> Floor -> Conv(float)

    Args:
        model: quantized, its weights not folded yet.
    """
    graph = _Graph(model)
    floats = [node for node in model.graph.node if graph.is_float(node)]
    marks: dict[str, onnx.NodeProto] = {}
    for node in floats:
        for place, name in enumerate(node.input):
            if graph.is_rounded(name) or graph.is_read_as_int8(name):
                if name not in marks:
                    marks[name] = helper.make_node(MARK, [name], [f"{name}.float"])
                node.input[place] = marks[name].output[0]
    kept: list[onnx.NodeProto] = [marks[i.name] for i in model.graph.input if i.name in marks]
    for node in model.graph.node:
        kept += [node, *(marks[name] for name in node.output if name in marks)]
    del model.graph.node[:]
    model.graph.node.extend(kept)


class _Graph:
    """An ONNX graph with who makes and reads each tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._made_by = as_onnx.producers(model)
        self._constants = {i.name for i in model.graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def is_rounded(self, name: str) -> bool:
        """Whether a tensor holds numbers of an int8 activation."""
        maker = self._made_by.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        return maker.input[0] not in self._constants

    def is_read_as_int8(self, name: str) -> bool:
        """Whether an int8 layer reads a tensor."""
        return any(one.op_type == "QuantizeLinear" for one in self._readers.get(name, ()))

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Whether an operation has float weights, or stands beside one that is not rounded."""
        if node.op_type in _ROUNDS:
            return False
        if node.op_type in _CLAMPS and not self.is_rounded(node.input[0]):
            maker = self._made_by.get(node.input[0])  # a clamp belongs to what it reads
            return maker is None or self.is_float(maker)
        if node.op_type == "Conv" and node.input[1] in self._constants:
            return True
        read = [name for name in node.input if not self._is_constant(name)]
        return not all(map(self.is_rounded, read)) or not self._is_rounded_next(node.output[0])

    def _is_constant(self, name: str) -> bool:
        maker = self._made_by.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return maker.input[0] in self._constants
        return not name or name in self._constants

    def _is_rounded_next(self, name: str) -> bool:
        """Whether nothing but a clamp stands between a tensor and its rounding."""
        readers = self._readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type in _CLAMPS:
            readers = self._readers.get(readers[0].output[0], [])
        return bool(readers) and all(one.op_type == "QuantizeLinear" for one in readers)


def without_marks(content: bytes) -> bytes:
    """Take the marks out of a TFLite file.

    before: x -> DEQUANTIZE -> FLOOR -> CONV_2D(float)
    after:  x -> DEQUANTIZE -> CONV_2D(float)
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    floor = schema.BuiltinOperator.FLOOR
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    marks = [op for op in graph.operators if codes[op.opcodeIndex] == floor]
    if not marks:
        return content
    before = {int(op.outputs[0]): int(op.inputs[0]) for op in marks}
    graph.operators = [op for op in graph.operators if codes[op.opcodeIndex] != floor]
    model.operatorCodes = [
        code for code, number in zip(model.operatorCodes, codes, strict=True) if number != floor
    ]
    kept_codes = [place for place, number in enumerate(codes) if number != floor]
    kept = [place for place in range(len(graph.tensors)) if place not in before]
    place_of = {old: new for new, old in enumerate(kept)} | {-1: -1}
    place_of |= {mark: place_of[source] for mark, source in before.items()}
    _renumber(graph, place_of, {old: new for new, old in enumerate(kept_codes)})
    graph.tensors = [graph.tensors[place] for place in kept]
    for signature in model.signatureDefs or ():
        for port in (*signature.inputs, *signature.outputs):
            port.tensorIndex = place_of[int(port.tensorIndex)]
    return pack(model)


def _renumber(graph: Any, tensors: dict[int, int], codes: dict[int, int]) -> None:
    """Give the operations of a graph, and what goes in and out, other numbers of tensors."""
    for op in graph.operators:
        op.opcodeIndex = codes[op.opcodeIndex]
        op.inputs = [tensors[int(index)] for index in op.inputs]
        op.outputs = [tensors[int(index)] for index in op.outputs]
    graph.inputs = [tensors[int(index)] for index in graph.inputs]
    graph.outputs = [tensors[int(index)] for index in graph.outputs]
