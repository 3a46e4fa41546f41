"""Bilinear enlarging of integers, by a convolution that rounds to the nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.formats import as_onnx


def enlarge_by_convolution(model: onnx.ModelProto) -> None:
    """Write bilinear enlarging of int8 layers as repeated pixels and weighted means, in place.

    ONNX Runtime resizes integers itself, but cuts off what is behind the point: two of five
    numbers are a step too low. And it takes longer.

    before: x -> DequantizeLinear -> Resize(linear) -> QuantizeLinear
    after:  x -> DequantizeLinear -> Pad(edge, 1) -> Resize(nearest) -> Slice
            -> Conv(1 2 1 / 4 on each axis, one group a channel) -> QuantizeLinear

    Each `->` before the convolution rounds to the grid of x, on which all numbers lie.
    """
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    channels = {v.name: v.type.tensor_type.shape.dim for v in model.graph.value_info}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "Resize" else None
        mode = {one.name: one.s for one in node.attribute}.get("mode")
        if source is None or source.op_type != "DequantizeLinear" or mode != b"linear":
            nodes.append(node)
            continue
        factor = int(values[node.input[2]][-1])
        steps = _Steps(node.output[0], list(source.input[1:]), node.input[0])
        width = int(channels[source.output[0]][1].dim_value)
        _enlarge(steps, factor, width)
        nodes += steps.nodes
        model.graph.initializer.extend(steps.constants)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Steps:
    """Operations one after the other, each rounded to one grid, and the constants they read."""

    def __init__(self, name: str, grid: list[str], image: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.name, self._grid, self.last = name, grid, image

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Name a constant of these steps."""
        self.constants.append(numpy_helper.from_array(value, f"{self.name}.{name}"))
        return f"{self.name}.{name}"

    def add(self, op: str, inputs: list[str], **attributes: Any) -> None:
        """Add an operation of the last image, and its rounding."""
        name = f"{self.name}.{op.lower()}"
        made = helper.make_node(op, [self.last, *inputs], [name], name, **attributes)
        quantize = helper.make_node("QuantizeLinear", [name, *self._grid], [f"{name}.int8"])
        back = [f"{name}.int8", *self._grid]
        self.last = f"{name}.float"
        self.nodes += [made, quantize, helper.make_node("DequantizeLinear", back, [self.last])]


def _enlarge(steps: _Steps, factor: int, channels: int) -> None:
    line = means(factor)
    cut = factor - len(line) // 2  # of what the repeated edge adds, the kernel reads the rest
    around = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    steps.add("Pad", [steps.constant("pads", around)], mode="edge")
    factors = steps.constant("factors", np.array([1, 1, factor, factor], np.float32))
    steps.add(
        *("Resize", ["", factors]),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    ends = {"starts": [cut, cut], "ends": [-cut, -cut], "axes": [2, 3]}
    steps.add("Slice", [steps.constant(k, np.array(v, np.int64)) for k, v in ends.items()])
    steps.nodes.append(_weight(steps, line, channels))
    steps.nodes.append(
        helper.make_node(
            *("Conv", [steps.last, f"{steps.name}.weight"], [steps.name], f"node_{steps.name}"),
            kernel_shape=[len(line)] * 2,
            group=channels,
            pads=[0, 0, 0, 0],
        )
    )


def _weight(steps: _Steps, line: NDArray[np.int8], channels: int) -> onnx.NodeProto:
    kernel = np.broadcast_to(line[:, None] * line, (channels, 1, len(line), len(line)))
    scale = np.full(channels, 1 / float(line.sum()) ** 2, np.float32)
    inputs = [
        steps.constant("int8", np.ascontiguousarray(kernel, np.int8)),
        steps.constant("scale", scale),
        steps.constant("zero", np.zeros(channels, np.int8)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{steps.name}.weight"], axis=0)


def means(factor: int) -> NDArray[np.int8]:
    """Weights of pixels repeated `factor` times that give what lies between pixels, as shares.

    A place's middle lies at (place + 1/2) / factor - 1/2 from the pixel's own, and takes of both
    neighbours by nearness. Of repeated pixels that is the mean of all that are up to half a pixel
    away; where none is in the middle, the two at the ends count half.
    """
    if factor % 2:
        return np.ones(factor, np.int8)
    line = np.full(factor + 1, 2, np.int8)
    line[[0, -1]] = 1
    return line
