"""Weights of TFLite files on the program's grid, whatever whole numbers they are.

TFLite's converter takes floats and derives each scale from the largest weight of a channel, as 127
steps. Where a program's largest is another number, as with weights of few bits, the file has finer
steps and other numbers. Those are put right afterwards, biases too, whose steps go by the weights'.

    learned = layer_weights(model)               # ONNX, before its weights are folded
    content = with_weights(content, learned)     # TFLite, whose tensors have the program's names
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.formats import as_onnx
from pipeline.formats.tflite.flatbuffer import drop_unread, kind_of, pack
from pipeline.formats.tflite.int4 import unpacked

WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
"""Operations whose second input are weights, and whose third are biases."""
_MOST = 127
"""The whole number of which the converter makes a channel's largest weight."""
_ROUNDS = {"QuantizeLinear", "DequantizeLinear"}
_FLOAT32 = 2.0**-22
"""Share of a number that may be lost where it is divided in float32."""
_PASSED_ON = {"MAXIMUM", "MINIMUM", "RELU", "RELU6", "RESHAPE"}
"""What may stand between a convolution and the tensor that is rounded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerWeights:
    """The weights of a convolution of the program.

    Attributes:
        codes: whole numbers, int8, (out channels, inputs of a group, height, width).
        scales: float32, one per output channel.
        bias: float32, likewise; None where there is none.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def key(self) -> bytes:
        """Equal for equal weights."""
        return self.codes.tobytes() + self.scales.tobytes()

    @property
    def is_found_again(self) -> bool:
        """Whether the converter finds the same scales: each channel's largest number is 127."""
        largest = np.abs(self.codes.astype(np.int16)).reshape(len(self.codes), -1).max(1)
        return bool((largest == _MOST).all())


def layer_weights(model: onnx.ModelProto) -> dict[str, LayerWeights]:
    """The weights of every int8 convolution, by the name of each rounded tensor that it gives.

    Args:
        model: quantized, its weights not folded yet.
    """
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    found: dict[str, LayerWeights] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        conv = _convolution(node.input[0], made_by)
        weight = made_by.get(conv.input[1]) if conv is not None else None
        if conv is None or weight is None or weight.op_type != "DequantizeLinear":
            continue  # a layer in float
        found[node.output[0]] = LayerWeights(
            codes=values[weight.input[0]],
            scales=values[weight.input[1]].reshape(-1),
            bias=values[conv.input[2]] if len(conv.input) > 2 else None,
        )
    return found


def _convolution(name: str, made_by: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The convolution behind a tensor, with clamps and views at most between them."""
    node = made_by.get(name)
    while node is not None and node.op_type != "Conv":
        if node.op_type in _ROUNDS or sum(name in made_by for name in node.input) != 1:
            return None
        node = next(made_by[name] for name in node.input if name in made_by)
    return node


def with_weights(content: bytes, learned: Mapping[str, LayerWeights]) -> bytes:
    """Give the operations of a TFLite file the program's weights, scales and biases.

    before: weight int8 of scales largest / 127, bias int32 of input scale x these
    after:  weight int8 of the program's scales, bias int32 of input scale x the program's scales

    A file in which the converter found them all is given back as it is.

    Args:
        content: of the file, its tensors called as the program's.
        learned: see `layer_weights`.

    Raises:
        RuntimeError: a weight of the file is not the program's, or one of the program's is missing.
    """
    from ai_edge_litert import schema_py_generated as schema

    if all(one.is_found_again for one in learned.values()):
        return content
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    constants, read_by = Constants(model), readers(graph)
    placed: set[bytes] = set()
    for op in [op for op in graph.operators if kind_of(model, op) in WEIGHTED]:
        layer = _layer(model, int(op.outputs[0]), read_by, learned)
        if layer is not None and graph.tensors[op.inputs[1]].type == schema.TensorType.INT8:
            _put(constants, op, layer, learned[layer])
            placed.add(learned[layer].key)
    missing = [n for n, w in learned.items() if w.key not in placed and not w.is_found_again]
    if missing:
        raise RuntimeError(f"{missing[0]}: no operation of the TFLite file has these weights")
    drop_unread(model)
    return pack(model)


def readers(graph: Any) -> dict[int, list[Any]]:
    """The operations that read each tensor, by its number."""
    found: dict[int, list[Any]] = {}
    for op in graph.operators:
        for index in op.inputs:
            found.setdefault(int(index), []).append(op)
    return found


def _layer(
    model: Any, tensor: int, read_by: Mapping[int, list[Any]], known: Mapping[str, LayerWeights]
) -> str | None:
    """The name of a tensor, or of what a clamp or a view makes of it; None where none is known."""
    tensors = model.subgraphs[0].tensors
    while (name := str(tensors[tensor].name.decode())) not in known:
        after = read_by.get(tensor, [])
        if len(after) != 1 or kind_of(model, after[0]) not in _PASSED_ON:
            return None
        tensor = int(after[0].outputs[0])
    return name


def _put(constants: Constants, op: Any, layer: str, learned: LayerWeights) -> None:
    """Give one operation its weights and biases, in place."""
    data, weight, *biases = (int(index) for index in op.inputs)
    grid = constants.tensor(weight).quantization
    axis = int(grid.quantizedDimension)
    present, scales = constants.values(weight), np.asarray(grid.scale, np.float32)
    codes = _laid_out(learned.codes, present.shape, axis)
    if np.array_equal(present, codes) and np.array_equal(scales, learned.scales):
        return
    of_channel = [-1 if place == axis else 1 for place in range(codes.ndim)]
    steps = [s.astype(np.float64).reshape(of_channel) for s in (scales, learned.scales)]
    _check(layer, "weight", (present, codes), steps)
    input_scale = float(constants.tensor(data).quantization.scale[0])
    op.inputs = [data, constants.like(weight, codes, learned.scales)]
    op.inputs += [_bias(constants, one, layer, learned, input_scale) for one in biases]
    if biases in ([], [-1]) and learned.bias is not None and learned.bias.any():
        raise RuntimeError(f"{layer}: its operation in the TFLite file has no bias")


def _bias(
    constants: Constants, bias: int, layer: str, learned: LayerWeights, input_scale: float
) -> int:
    """The number of a bias that is as `bias`, on the grid of the program's weights."""
    if bias < 0:
        return bias
    grid = input_scale * learned.scales.astype(np.float64)
    wanted = np.zeros(len(grid)) if learned.bias is None else np.rint(learned.bias / grid)
    before = np.asarray(constants.tensor(bias).quantization.scale, np.float64)
    _check(layer, "bias", (constants.values(bias), wanted), [before, grid])
    return constants.like(bias, wanted.astype(np.int32), grid.astype(np.float32))


def _laid_out(codes: NDArray[np.int8], shape: tuple[int, ...], channels: int) -> NDArray[np.int8]:
    """The weights of a convolution as an operation of TFLite has them, channels last.

    Args:
        codes: (out channels, inputs of a group, height, width).
        shape: of the operation's weights.
        channels: the axis of its output channels: 3 of (1, height, width, out channels), 0 else.
    """
    order = (1, 2, 3, 0) if channels == 3 else (0, 2, 3, 1)
    return np.ascontiguousarray(codes.transpose(order)).reshape(shape)


def _check(
    layer: str, what: str, codes: tuple[NDArray[Any], NDArray[Any]], steps: list[NDArray[Any]]
) -> None:
    """Stop where numbers on two grids are further apart than rounding to both makes them."""
    first, second = (c * step for c, step in zip(codes, steps, strict=True))
    allowed = (steps[0] + steps[1]) / 2 + _FLOAT32 * np.abs(first)
    if (np.abs(first - second) > allowed).any():
        raise RuntimeError(f"{layer}: the {what} in the TFLite file is not that of the program")


class Constants:
    """The constants of a model in its object form."""

    def __init__(self, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema, self._model = schema, model
        self._made: dict[tuple[Any, ...], int] = {}

    def tensor(self, index: int) -> Any:
        """A tensor by its number."""
        return self._model.subgraphs[0].tensors[int(index)]

    def values(self, index: int) -> NDArray[Any]:
        """What a constant of whole numbers holds, in its shape."""
        return stored(self._model, self.tensor(index))

    def like(self, index: int, values: NDArray[Any], scales: NDArray[np.float32]) -> int:
        """The number of a tensor as `index` is one, but of these numbers and scales.

        Equal ones are one tensor.
        """
        key = (int(index), values.tobytes(), scales.tobytes())
        if key not in self._made:
            tensor = copy.deepcopy(self.tensor(index))
            tensor.quantization.scale = scales
            tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
            tensor.buffer = self.buffer(values)
            self._model.subgraphs[0].tensors.append(tensor)
            self._made[key] = len(self._model.subgraphs[0].tensors) - 1
        return self._made[key]

    def buffer(self, values: NDArray[Any]) -> int:
        """The number of a new buffer that holds `values`."""
        made = self._schema.BufferT()
        made.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self._model.buffers.append(made)
        return len(self._model.buffers) - 1


def stored(model: Any, tensor: Any) -> NDArray[Any]:
    """The numbers of a constant of a model in its object form, in the tensor's shape."""
    from ai_edge_litert import schema_py_generated as schema

    types = schema.TensorType
    data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8)
    if tensor.type == types.INT4:
        return unpacked(data, int(np.prod(tensor.shape))).reshape(tensor.shape)
    dtypes = {types.INT8: np.int8, types.INT32: np.int32, types.FLOAT32: np.float32}
    return data.view(dtypes[tensor.type]).reshape(tensor.shape)
