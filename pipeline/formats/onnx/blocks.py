"""Weights of 4 bits in ONNX files whose step differs from block to block of input channels.

As `few_bits` stores weights, and a whole number for each block besides. ONNX Runtime multiplies the
block by it when it loads the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.formats import as_onnx
from pipeline.formats.weight_blocks import Blocks, in_blocks, times
from pipeline.recipe.weight_forms import INT4_QMAX

_TABLE = "four_bits.table"
"""Of the numbers of the two halves of each byte."""
_MIDDLE, _CODES = "four_bits.middle", 2 * INT4_QMAX + 1
"""What weights of uint8 have for zero; numbers that a weight can be."""
_CHAIN = ("Reshape", "Cast", "Add", "Mul", "Reshape", "Gather", "Cast")
"""Operations that make a weight, the last first; int8 ones take no Add."""

Parts = tuple[list[onnx.NodeProto], list[TensorProto]]


def blocks_of(weight: as_onnx.Array) -> Blocks | None:
    """The blocks of weights of int8 or uint8; None where they have none, or are an odd number."""
    if weight.size % 2 or weight.ndim < 2:
        return None
    if weight.dtype == np.uint8:
        weight = (weight.astype(np.int16) - 128).astype(np.int8)
    return in_blocks(weight) if weight.dtype == np.int8 else None


def parts(stored: TensorProto, blocks: Blocks) -> Parts:
    """What makes a weight of its blocks, without what all such weights share (`shared`).

    before: w int8
    after:  bytes -> Cast(int32) -> Gather(table) -> Reshape(block by block) -> Mul(multiples)
            -> Cast(int8) -> Reshape -> w

    Weights of uint8 have an Add of 128 behind the Mul.
    """
    name, kind = stored.name, stored.data_type
    pairs = (blocks.codes.reshape(-1, 2) + INT4_QMAX).astype(np.uint8)
    packed = pairs[:, 0] * np.uint8(_CODES) + pairs[:, 1]
    multiples = blocks.multiples.reshape(-1, 1).astype(np.int32)
    constants = {
        f"{name}.packed": packed,
        f"{name}.multiples": multiples.astype(np.uint8),
        f"{name}.blocks": np.array([len(multiples), -1], np.int64),
        f"{name}.shape": np.array(blocks.codes.shape, np.int64),
    }
    made = f"{name}.whole"
    nodes = [
        helper.make_node("Cast", [f"{name}.packed"], [f"{name}.place"], to=TensorProto.INT32),
        helper.make_node("Gather", [_TABLE, f"{name}.place"], [f"{name}.pairs"], axis=0),
        helper.make_node("Reshape", [f"{name}.pairs", f"{name}.blocks"], [f"{name}.rows"]),
        helper.make_node("Cast", [f"{name}.multiples"], [f"{name}.times"], to=TensorProto.INT32),
        helper.make_node("Mul", [f"{name}.rows", f"{name}.times"], [made]),
    ]
    if kind == TensorProto.UINT8:
        nodes.append(helper.make_node("Add", [made, _MIDDLE], [f"{name}.moved"]))
        made = f"{name}.moved"
    nodes += [
        helper.make_node("Cast", [made], [f"{name}.bytes"], to=kind),
        helper.make_node("Reshape", [f"{name}.bytes", f"{name}.shape"], [name]),
    ]
    return nodes, [numpy_helper.from_array(value, key) for key, value in constants.items()]


def shared() -> list[TensorProto]:
    """The constants that all such weights of a file read."""
    numbers = np.arange(-INT4_QMAX, INT4_QMAX + 1, dtype=np.int32)
    first, second = np.meshgrid(numbers, numbers, indexing="ij")
    table = np.column_stack([first.flatten(), second.flatten()])
    return [
        numpy_helper.from_array(table, _TABLE),
        numpy_helper.from_array(np.array(128, np.int32), _MIDDLE),
    ]


def chain(name: str, made_by: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes of `parts` that make a tensor; empty where others do."""
    found = list[onnx.NodeProto]()
    for kind in _CHAIN:
        node = made_by.get(name)
        if node is not None and node.op_type == kind:
            found.append(node)
            name = node.input[1] if kind == "Gather" else node.input[0]
        elif kind != "Add":
            return []
    multiply = next(node for node in found if node.op_type == "Mul")
    cast = made_by.get(multiply.input[1])
    return [] if cast is None or cast.op_type != "Cast" else [*found, cast]


def made(nodes: list[onnx.NodeProto], values: Mapping[str, as_onnx.Array]) -> as_onnx.Array | None:
    """The weight that a chain makes; None where it is none of `parts`."""
    by_kind = {node.op_type: node for node in nodes[1:-1]}  # the later Reshape and Cast
    table, packed = values.get(by_kind["Gather"].input[0]), values.get(by_kind["Cast"].input[0])
    multiples, shape = values.get(nodes[-1].input[0]), values.get(nodes[0].input[1])
    if table is None or packed is None or multiples is None or shape is None:
        return None
    if packed.dtype != np.uint8 or table.dtype != np.int32 or multiples.dtype != np.uint8:
        return None
    codes = table[packed].reshape(shape).astype(np.int8)
    weight = times(codes, multiples.reshape(int(shape[0]), -1))
    if "Add" not in by_kind:
        return weight
    moved: as_onnx.Array = (weight.astype(np.int16) + 128).astype(np.uint8)
    return moved
