"""Convolutions that ONNX Runtime is to compute as products of matrices, with AMX."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.base.machine import cpu_flags
from pipeline.formats import as_onnx

MIN_DEPTH = 256
"""Products per sum, at least: below, filling and emptying AMX' tiles takes longer than it saves."""
POSITIONS_PER_DEPTH = 2
"""Output positions for each product of a sum, at most.

The kernel copies its input windows and writes all int32 sums to memory first. On a Xeon with AMX,
layers of ResNeSt-50 with more positions took 1 to 2.4 times as long by it, and those with fewer
0.5 to 0.8 times.
"""
_TILES = 32
"""Outputs that the AMX kernel computes in one go, as two tiles of 16."""


def has_tiles() -> bool:
    """Whether this CPU multiplies matrices of int8 in tiles (AMX)."""
    return "amx_int8" in (cpu_flags() or ())


def gemm_form(model: onnx.ModelProto) -> list[str]:
    """Store the weights of deep convolutions as uint8 with zero point 128, in place.

    That is the same grid, so every number stays the same. But for int8 weights with zero point 0
    ONNX Runtime 1.23 has a convolution kernel of its own on x86 and takes no other (qlinearconv.cc,
    `TryConvSymPrepack`); that one knows VNNI and not AMX. With any other weights it copies the
    windows and multiplies matrices, for which it does have AMX. On CPUs without AMX the copying
    makes the file slower, so this is for CPUs with it (`has_tiles`).

    before: weight int8, scale, zero point 0 -> DequantizeLinear -> Conv
    after:  weight uint8 (= int8 + 128), scale, zero point 128 -> DequantizeLinear -> Conv

    Args:
        model: in QDQ form, uint8 activations, every weight with initializers of its own.

    Returns:
        The outputs of the convolutions that were changed.
    """
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    positions, changed = _positions(model), []
    for node in model.graph.node:
        weight = made_by.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        stored = values[weight.input[0]]
        if _groups(node) == 1 and _pays(stored.shape, positions[node.output[0]]):
            moved = (stored.astype(np.int16) + 128).astype(np.uint8)
            zero_point = np.full_like(values[weight.input[2]], 128, dtype=np.uint8)
            for index, value in ((0, moved), (2, zero_point)):
                name = f"{node.output[0]}.weight.{('uint8', '', 'uint8.zero_point')[index]}"
                model.graph.initializer.append(numpy_helper.from_array(value, name))
                weight.input[index] = name
            changed.append(node.output[0])
    as_onnx.drop_unused_constants(model)
    return changed


def _pays(shape: tuple[int, ...], positions: int) -> bool:
    """Whether AMX computes a convolution faster, and rightly.

    With 17 to 31 outputs over from a multiple of 32, ONNX Runtime 1.23 computes wrong sums for
    every 32nd position.
    """
    outputs, depth = shape[0], int(np.prod(shape[1:]))
    exact = outputs % _TILES <= _TILES // 2
    return exact and depth >= MIN_DEPTH and positions <= POSITIONS_PER_DEPTH * depth


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def _positions(model: onnx.ModelProto) -> dict[str, int]:
    """Height times width of every tensor (batch, channels, height, width)."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for value in single.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    return {name: int(np.prod(shape[2:])) for name, shape in shapes.items() if len(shape) == 4}
