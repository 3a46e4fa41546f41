"""TFLite flatbuffers, changed after the converter is done: names of layers, shared vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.as_onnx import INPUT, OUTPUT


def name_layers(content: bytes, layers: dict[str, str], convolved: dict[str, str]) -> bytes:
    """Give every quantized tensor of a TFLite file the name of the program's layer.

    What goes in and comes out is called as in the other formats.

    Args:
        content: of the file.
        layers: by the names of operations of TensorFlow, whose tensors are rounded.
        convolved: likewise, of convolutions that stay in float: the names of what they make.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    outside = {int(i) for i in (*graph.inputs, *graph.outputs)}
    named: set[str] = set()
    for op in graph.operators:
        for index in op.outputs:
            tensor = graph.tensors[index]
            # A tensor that several operations were fused into has all their names, last first.
            origins = tensor.name.decode().split(";")
            known = layers if tensor.type == schema.TensorType.INT8 else convolved
            found = [known[origin] for origin in origins if origin in known]
            if int(index) in outside or not found:
                continue
            if found[0] in named:
                continue  # the same values in another layout
            named.add(found[0])
            tensor.name = found[0]
    graph.tensors[graph.inputs[0]].name = INPUT
    graph.tensors[graph.outputs[0]].name = OUTPUT
    return pack(model)


def share_zero_points(content: bytes) -> bytes:
    """Store equal zero point vectors of a TFLite file once.

    Per-channel tensors need a zero point for each channel, 8 bytes of zeros, for weights and
    again for biases: more than a fiftieth of the file. A flatbuffer may refer to one vector from
    many tables, and readers cannot tell.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._written: dict[bytes, int] = {}

        def CreateNumpyVector(self, values: NDArray[Any]) -> int:
            raw = values.tobytes()
            if values.dtype == np.int64 and raw in self._written:
                return self._written[raw]
            # Tensor data must lie on 16 bytes, as the schema asks (force_align).
            alignment = 16 if values.dtype == np.uint8 else values.dtype.itemsize
            self.StartVector(values.dtype.itemsize, values.size, alignment)
            self.head: int = self.head - len(raw)
            self.Bytes[self.head : self.head + len(raw)] = raw
            offset = int(self.EndVector())
            if values.dtype == np.int64:
                self._written[raw] = offset
            return offset

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    return pack(model, Builder(len(content) + 1024))


def pack(model: Any, builder: Any = None) -> bytes:
    """The bytes of a TFLite model in its object form."""
    import flatbuffers

    builder = builder or flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def kind_of(model: Any, op: Any) -> str:
    """What an operation of a model in its object form is called in the schema: CONV_2D."""
    from ai_edge_litert import schema_py_generated as schema

    code = model.operatorCodes[op.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    names = vars(schema.BuiltinOperator).items()
    return next(str(name) for name, found in names if found == number and name.isupper())


def renumber(graph: Any, tensors: Mapping[int, int], codes: Mapping[int, int]) -> None:
    """Give the operations of a graph, and what goes in and out, other numbers of tensors."""
    for op in graph.operators:
        op.opcodeIndex = codes[op.opcodeIndex]
        op.inputs = [tensors[int(index)] for index in op.inputs]
        op.outputs = [tensors[int(index)] for index in op.outputs]
    graph.inputs = [tensors[int(index)] for index in graph.inputs]
    graph.outputs = [tensors[int(index)] for index in graph.outputs]


def drop_unread(model: Any) -> None:
    """Take kinds of operations, tensors and buffers that nothing names out of a model, in place."""
    graph = model.subgraphs[0]
    read = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs)}
    read |= {int(i) for i in (*graph.inputs, *graph.outputs)}
    kept = sorted(read - {-1})  # an input that is not there has the number -1
    kinds = sorted({op.opcodeIndex for op in graph.operators})
    place_of = {-1: -1} | {old: new for new, old in enumerate(kept)}
    renumber(graph, place_of, {old: new for new, old in enumerate(kinds)})
    graph.tensors = [graph.tensors[index] for index in kept]
    model.operatorCodes = [model.operatorCodes[index] for index in kinds]
    for signature in model.signatureDefs or ():
        for port in (*signature.inputs, *signature.outputs):
            port.tensorIndex = place_of[int(port.tensorIndex)]
    holders = [*graph.tensors, *(model.metadata or ())]
    # By convention the first buffer is empty.
    buffers = sorted({0} | {int(holder.buffer) for holder in holders})
    new = {old: place for place, old in enumerate(buffers)}
    for holder in holders:
        holder.buffer = new[int(holder.buffer)]
    model.buffers = [model.buffers[index] for index in buffers]
