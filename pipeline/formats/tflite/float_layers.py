"""Layers that stay in float between int8 layers, as TensorFlow's converter leaves them.

The converter quantizes whatever stands between two tensors that were rounded, weights and all, and
has no way to be told otherwise. It leaves alone what reads a tensor that was not rounded, and what
is not rounded next. So an operation which it has in float only is put wherever numbers go from an
int8 layer to a float one or back, and taken out of the file that comes of it.

    mark(model)                        # ONNX, before it is converted
    content = without_marks(content)   # TFLite, after
"""

from __future__ import annotations

import onnx
from onnx import helper

from pipeline.formats import as_onnx
from pipeline.formats.tflite.flatbuffer import pack, renumber

MARK = "Floor"
"""No network has it: `networks.lowering` knows no such operation."""
_CLAMPS = {"Relu", "Clip"}
_CONSTANTS = {"Add", "Conv", "Mul"}
"""Operations that int8 layers have as well, but not with constants in float."""
_ONLY_FLOAT = {
    *("Abs", "Cos", "Div", "Exp", "Log", "Max", "Min", "Pow", "Reciprocal", "Sin", "Sqrt", "Sub"),
}
_OF_IMAGE = 4
"""Axes of an image; a softmax over its channels has other ones in int8."""
_ROUNDS = {"QuantizeLinear", "DequantizeLinear"}


def mark(model: onnx.ModelProto) -> None:
    """Put a mark wherever numbers go from an int8 layer to a float one or back, in place.

    before: x -> QuantizeLinear -> DequantizeLinear -> Conv(float) -> QuantizeLinear
    after:  x -> QuantizeLinear -> DequantizeLinear -> Floor -> Conv(float) -> Floor
            -> QuantizeLinear

    Args:
        model: quantized, its weights not folded yet.
    """
    graph = _Graph(model)
    marks: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if graph.crosses(name, node):
                if name not in marks:
                    marks[name] = helper.make_node(MARK, [name], [f"{name}.crosses"])
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
        known = (*model.graph.value_info, *model.graph.output)
        self._ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in known}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def crosses(self, name: str, reader: onnx.NodeProto) -> bool:
        """Whether a tensor goes from an int8 layer to a float one, or back, where one reads it."""
        if reader.op_type == "QuantizeLinear":
            maker = self._made_by.get(name)
            if maker is None:  # the image
                return any(map(self.is_float, self._readers[name]))
            return self.is_float(maker)
        return self.is_rounded(name) and self.is_float(reader)

    def is_rounded(self, name: str) -> bool:
        """Whether a tensor holds numbers of an int8 activation."""
        maker = self._made_by.get(name)
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        return maker.input[0] not in self._constants

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Whether an operation has float weights, or stands beside one that is not rounded."""
        if node.op_type in _ROUNDS:
            return False
        if node.op_type in _CLAMPS and not self.is_rounded(node.input[0]):
            maker = self._made_by.get(node.input[0])  # a clamp belongs to what it reads
            return maker is None or self.is_float(maker)
        if node.op_type in _ONLY_FLOAT or self._has_constant(node):
            return True
        if node.op_type == "Softmax" and self._ranks.get(node.output[0]) == _OF_IMAGE:
            return True
        read = [name for name in node.input if not self._is_constant(name)]
        return not all(map(self.is_rounded, read)) or not self._is_rounded_next(node.output[0])

    def _has_constant(self, node: onnx.NodeProto) -> bool:
        """Whether it has weights that are not rounded, or is a sum or product with a constant."""
        named = node.input[1:2] if node.op_type == "Conv" else node.input
        return node.op_type in _CONSTANTS and any(name in self._constants for name in named)

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

    before: x -> DEQUANTIZE -> FLOOR -> CONV_2D(float) -> FLOOR -> QUANTIZE
    after:  x -> DEQUANTIZE -> CONV_2D(float) -> QUANTIZE
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
    place_of |= {mark: place_of[_first(source, before)] for mark, source in before.items()}
    renumber(graph, place_of, {old: new for new, old in enumerate(kept_codes)})
    graph.tensors = [graph.tensors[place] for place in kept]
    for signature in model.signatureDefs or ():
        for port in (*signature.inputs, *signature.outputs):
            port.tensorIndex = place_of[int(port.tensorIndex)]
    return pack(model)


def _first(tensor: int, before: dict[int, int]) -> int:
    """What stands before all marks in a row."""
    while tensor in before:
        tensor = before[tensor]
    return tensor
