"""A TFLite file with fewer channels, and how long each of its layers takes in LiteRT."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import following
from pipeline.formats.channels import ChannelOperation, Kind, channels_after, sliced
from pipeline.formats.layer_times import blocks, net_times
from pipeline.formats.tflite.flatbuffer import pack, share_zero_points
from pipeline.formats.tflite.int4 import packed
from pipeline.formats.tflite.weights import stored

_SAME: Kind = "same"
_KINDS: dict[str, Kind] = {
    "CONV_2D": "convolution",
    "FULLY_CONNECTED": "convolution",
    "ADD": "elementwise",
    "MUL": "elementwise",
    "RESHAPE": "reshape",
    "STRIDED_SLICE": "slice",
    "CONCATENATION": "concat",
    **dict.fromkeys(("AVERAGE_POOL_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "MEAN"), _SAME),
    **dict.fromkeys(("ELU", "GELU", "LEAKY_RELU", "LOGISTIC", "RELU", "RELU6"), _SAME),
    **dict.fromkeys(("PAD", "RESIZE_BILINEAR", "SOFTMAX", "TANH", "TRANSPOSE"), _SAME),
    **dict.fromkeys(("CAST", "DEQUANTIZE", "QUANTIZE"), _SAME),
}
"""How channels follow through every operation that our files have."""


def resized(content: bytes, widths: Mapping[str, int]) -> bytes:
    """The same network with fewer channels, for timing: its answers mean nothing.

    All other tensors follow. Of weights, scales, zero points and biases the first are kept.

    Args:
        content: a TFLite file from `tflite.write`.
        widths: new output channels by layer name (in a float file: tensor name) of any regular
            convolution but the last, which makes the file's output. Others keep theirs.

    Raises:
        ValueError: a name is none of these, a width is below 1 or above the present one, its
            groups do not divide a convolution's channels, or operands do not match.
    """
    file = _File(content)
    operations = [file.operation(op) for op in file.graph.operators]
    given = {str(i): int(file.tensor(i).shape[-1]) for i in file.graph.inputs}
    present = channels_after(operations, given, {})
    channels = channels_after(operations, given, widths)
    if channels == present:
        return content
    for op, operation in zip(file.graph.operators, operations, strict=True):
        count, source = channels[operation.output], operation.inputs[0]
        output = file.tensor(op.outputs[0])
        if count != present[operation.output]:
            output.shape = _with_channels(output.shape, count)
        kind, (data, *constants) = file.op_name(op), op.inputs
        if operation.kind == "convolution":
            constants = [
                file.cut(i, count, channels[source] // operation.groups) for i in constants
            ]
        elif kind == "DEPTHWISE_CONV_2D":
            constants = [file.cut(i, count, count) for i in constants]
        elif kind == "RESHAPE":
            constants = [file.constant(constants[0], output.shape)]
        elif operation.kind == "slice":
            ends = sliced(operation, present[source], channels[source])
            for place, end in enumerate(ends):
                changed = _with_channels(file.values(constants[place]), end)
                constants[place] = file.constant(constants[place], changed)
        op.inputs = [data, *constants]
    # Equal vectors are shared and constants aligned, as in the file that came in.
    return share_zero_points(pack(file.whole()))


@following("a TFLite file")
def layer_times(content: bytes, rounds: int, threads: int) -> dict[str, float]:
    """Typical milliseconds of every operation of a file in LiteRT's own kernels.

    LiteRT has no profile of what XNNPACK runs, so each operation is cut out into a file of its
    own. They run in turn in the order of the network, so that weights are as far from the
    processor as there; what a call costs is found by running the whole file in turn with them:
    see `layer_times.net_times`. A padding counts as part of what reads it, since XNNPACK makes
    one operation of them.

    Args:
        content: a TFLite file from `tflite.write`.
        rounds: how often each operation is timed, at least once.
        threads: of LiteRT, for each operation alone.

    Returns:
        By name of the tensor that the operation makes, in the order of the network; in a
        quantized file that is the layer's name.
    """
    network = _Call(content, threads)
    calls = {name: _Call(part, threads) for name, part in parts(content)}
    whole: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for block in blocks(rounds):
        whole += [network.milliseconds() for _ in block]
        for _ in block:
            for name, call in calls.items():
                samples[name].append(call.milliseconds())
    counts = np.concatenate(blocks(rounds))
    counted = {name: np.array(taken)[counts] for name, taken in samples.items()}
    return net_times(counted, np.array(whole)[counts])


def parts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Every operation of a file as a file, with the name of the tensor that it makes."""
    return _File(content).parts()


def _with_channels(shape: Sequence[int] | NDArray[Any], count: int) -> NDArray[np.int32]:
    """`shape` with another number of channels.

    They are the last axis of an image (batch, height, width, channels), the second of all else:
    (batch, channels, splits) and (batch, channels).
    """
    changed = np.array(shape, np.int32)
    changed[3 if len(changed) == 4 else 1] = count
    return changed


class _File:
    """A TFLite file in its object form."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._op_names: dict[int, str] = {
            number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
        }
        self.model = schema.ModelT.InitFromPackedBuf(content, 0)
        self.graph = self.model.subgraphs[0]
        made = (index for op in self.graph.operators for index in op.outputs)
        self._activations = {int(index) for index in (*self.graph.inputs, *made)}

    def tensor(self, index: int) -> Any:
        return self.graph.tensors[int(index)]

    def op_name(self, op: Any) -> str:
        code = self.model.operatorCodes[op.opcodeIndex]
        return self._op_names[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def values(self, index: int) -> NDArray[Any]:
        """A constant."""
        return stored(self.model, self.tensor(index))

    def operation(self, op: Any) -> ChannelOperation:
        """What `channels_after` needs to know of an operation; tensors go by their numbers.

        Raises:
            ValueError: an operation that our files do not have.
        """
        name, layer = self.op_name(op), self.tensor(op.outputs[0]).name.decode()
        kind = _KINDS.get(name)
        if kind is None:
            raise ValueError(f"{layer}: channels cannot be followed through {name}")
        inputs = [int(i) for i in op.inputs if int(i) in self._activations]
        shape = self.tensor(op.outputs[0]).shape
        groups, start, stop, step = 1, 0, 0, 1
        if name == "CONV_2D":
            groups = self.tensor(inputs[0]).shape[-1] // self.tensor(op.inputs[1]).shape[-1]
        elif name == "STRIDED_SLICE":
            start, stop, step = (int(self.values(i)[-1]) for i in op.inputs[1:])
            last = 1 << len(shape) - 1
            if op.builtinOptions.beginMask & op.builtinOptions.endMask & last:
                kind = "same"  # of height or width: all channels go on
        elif name == "CONCATENATION" and op.builtinOptions.axis not in (-1, 3):
            kind = "elementwise"  # beside each other in height or width: windows of one image
        return ChannelOperation(
            layer=layer,
            kind=kind,
            inputs=tuple(str(i) for i in inputs),
            output=str(op.outputs[0]),
            channels=int(shape[3 if len(shape) == 4 else 1]),
            groups=int(groups),
            start=start,
            stop=stop,
            step=step,
        )

    def cut(self, index: int, first: int, last: int) -> int:
        """The number of a tensor with the first of a weight's or bias's values.

        Args:
            index: of the weight, (first, height, width, last), or the bias, (first,).
            first: largest size of the first axis.
            last: largest size of the last axis.
        """
        values = self.values(index)
        values = values[:first, ..., :last] if values.ndim > 1 else values[:first]
        number = self.constant(index, values)
        grid = self.tensor(number).quantization
        if number != index and grid is not None and grid.scale is not None and len(grid.scale) > 1:
            grid = copy.copy(grid)
            channels = values.shape[grid.quantizedDimension]
            grid.scale, grid.zeroPoint = grid.scale[:channels], grid.zeroPoint[:channels]
            self.tensor(number).quantization = grid
        return number

    def constant(self, index: int, values: NDArray[Any]) -> int:
        """The number of a tensor as `index`, but with these values; `index` if it has them."""
        if np.array_equal(values, self.values(index)):
            return int(index)
        tensor, buffer = copy.copy(self.tensor(index)), self._schema.BufferT()
        shape = np.array(values.shape, np.int32)
        if tensor.type == self._schema.TensorType.INT4:
            if values.shape[-1] % 2:  # which XNNPACK takes as int8 alone
                tensor.type = self._schema.TensorType.INT8
            else:
                values = packed(values)
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        tensor.shape, tensor.buffer = shape, len(self.model.buffers)
        self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def whole(self) -> Any:
        """The network as it is now, without constants that nothing reads any more."""
        graph, model = self.graph, self.model
        small = _subset(model, graph.operators, graph.inputs, graph.outputs)
        outside = [*graph.inputs, *graph.outputs]
        new = [*small.subgraphs[0].inputs, *small.subgraphs[0].outputs]
        renumbered = dict(zip((int(i) for i in outside), new, strict=True))
        small.signatureDefs = model.signatureDefs
        for signature in model.signatureDefs or []:
            for tensor in (*signature.inputs, *signature.outputs):
                tensor.tensorIndex = renumbered[int(tensor.tensorIndex)]
        return small

    def parts(self) -> Iterator[tuple[str, bytes]]:
        """Every operation as a file, with the name of the tensor that it makes."""
        pads = {int(op.outputs[0]): op for op in self.graph.operators if self.op_name(op) == "PAD"}
        for op in self.graph.operators:
            if int(op.outputs[0]) in pads:
                continue
            operators = [*(pads[int(i)] for i in op.inputs if int(i) in pads), op]
            read = dict.fromkeys(int(i) for part in operators for i in part.inputs)
            inputs = [i for i in read if i in self._activations and i not in pads]
            part = _subset(self.model, operators, inputs, op.outputs)
            yield self.tensor(op.outputs[0]).name.decode(), pack(part)


def _subset(
    model: Any, operators: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int]
) -> Any:
    """A model of some operations of `model`, with the tensors and buffers that they use."""
    from ai_edge_litert import schema_py_generated as schema

    # An input that is not there has the number -1.
    used = sorted({int(i) for op in operators for i in (*op.inputs, *op.outputs) if i >= 0})
    renumbered = {-1: -1} | {old: new for new, old in enumerate(used)}
    graph, small = schema.SubGraphT(), schema.ModelT()
    graph.tensors = [copy.copy(model.subgraphs[0].tensors[index]) for index in used]
    # By convention the first buffer is empty, and every tensor without values has it.
    buffers = {0: 0}
    for tensor in graph.tensors:
        data = model.buffers[tensor.buffer].data
        old = tensor.buffer if data is not None and len(data) else 0
        tensor.buffer = buffers.setdefault(old, len(buffers))
    graph.operators = [copy.copy(op) for op in operators]
    for op in graph.operators:
        op.inputs = [renumbered[int(i)] for i in op.inputs]
        op.outputs = [renumbered[int(i)] for i in op.outputs]
    graph.inputs = [renumbered[int(i)] for i in inputs]
    graph.outputs = [renumbered[int(i)] for i in outputs]
    small.version, small.operatorCodes = model.version, model.operatorCodes
    small.subgraphs, small.buffers = [graph], [model.buffers[old] for old in buffers]
    return small


class _Call:
    """A file, opened: a whole network or one operation."""

    def __init__(self, content: bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        details = (*self._interpreter.get_output_details(), *self._interpreter.get_input_details())
        # Read anew at every call: LiteRT refuses to run while an array of its memory is held.
        self._views = [self._interpreter.tensor(detail["index"]) for detail in details]

    def milliseconds(self) -> float:
        """The time of one run, its data near the processor.

        In a network the operation before has just written the input, and the output goes to
        memory that was in use shortly before.
        """
        for view in self._views:
            view().fill(0)
        started = time.perf_counter_ns()
        self._interpreter.invoke()
        return (time.perf_counter_ns() - started) / 1e6
