"""Weights of few bits in ONNX files, of which ONNX Runtime makes int8 when it loads them.

ONNX Runtime has no convolution of 4-bit weights. But what is made of constants alone it computes
when it loads a file, before it fuses anything: kernels then find the int8 weights of any other
file. ONNX's own type of 4 bits is not used for that: opset 17 does not have it, and no ONNX Runtime
before 1.23 casts it to another. Two weights in a byte, and a table that says which, take operations
that all versions have.

Weights of more than 16 different values are stored so where they are multiples of 4-bit numbers,
block by block (`blocks`). Others stay int8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.formats import as_onnx
from pipeline.formats.onnx import blocks

_BYTES = 256
"""That there are."""
_VALUES = 16
"""Different ones, at most: as many pairs of them as bytes."""
_TABLE = ".table"
"""What the name of a table ends in."""
_FRAME_BYTES = 4
"""Before each node and constant in a file: a tag, and a length of up to 2 MB."""
_MIDDLE = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}
"""The number that stands for a weight of zero."""

_Table = tuple[int, bytes]
"""Type and content."""
_Parts = tuple[list[onnx.NodeProto], list[TensorProto]]
"""Nodes and constants that make a weight."""


def pack(model: onnx.ModelProto) -> list[str]:
    """Store the weights of convolutions in 4 bits, in place, where that takes fewer bytes.

    A byte is the place in a table of the pair of numbers that it stands for. Weights of the same
    values share a table.

    before: w int8 -> DequantizeLinear -> Conv
    after:  table int8 (pairs, 2), bytes -> Cast(int32) -> Gather -> Reshape -> w
            -> DequantizeLinear -> Conv

    Args:
        model: in QDQ form; the weights may be uint8, as `gemm_form` leaves them.

    Returns:
        The names of the weights that were changed.
    """
    weights, tables = set(_weights(model)), dict[_Table, str]()
    changed, nodes, constants = list[str](), list[onnx.NodeProto](), list[TensorProto]()
    for stored in model.graph.initializer:
        made = _made_of_few(stored, tables) if stored.name in weights else None
        if made is None or _bytes(*made) >= _bytes([], [stored]):
            constants.append(stored)
            continue
        changed.append(stored.name)
        nodes += made[0]
        constants += made[1]
        tables |= {_table(one): one.name for one in made[1] if one.name.endswith(_TABLE)}
    if changed:
        constants += blocks.shared()
        _replace(model, [*nodes, *model.graph.node], constants)
        as_onnx.drop_unused_constants(model)
    return changed


def _made_of_few(stored: TensorProto, tables: Mapping[_Table, str]) -> _Parts | None:
    """What makes a weight of few different numbers, or of blocks; None of others."""
    weight = numpy_helper.to_array(stored)
    values = _values(weight)
    if values is not None:
        return _parts(stored, values, tables)
    found = blocks.blocks_of(weight)
    return None if found is None else blocks.parts(stored, found)


def _weights(model: onnx.ModelProto) -> Iterator[str]:
    """What a DequantizeLinear in front of a convolution reads."""
    made_by = as_onnx.producers(model)
    for node in model.graph.node:
        weight = made_by.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            yield weight.input[0]


def _values(weight: as_onnx.Array) -> as_onnx.Array | None:
    """At most 16 values, ascending, that hold a weight of int8 or uint8; None with more.

    Those of 4 bits are the same for every weight. An odd number of weights has no pairs.
    """
    if weight.dtype not in _MIDDLE or weight.size % 2:
        return None
    seen = np.bincount(weight.view(np.uint8).flatten(), minlength=_BYTES) > 0
    used = np.sort(np.arange(_BYTES, dtype=np.uint8)[seen].view(weight.dtype))
    signed = used.astype(np.int16) - _MIDDLE[weight.dtype]
    if signed[0] >= -_VALUES // 2 and signed[-1] < _VALUES // 2:
        four_bits = np.arange(_VALUES) - _VALUES // 2 + _MIDDLE[weight.dtype]
        return four_bits.astype(weight.dtype)
    return used if len(used) <= _VALUES else None


def _parts(stored: TensorProto, values: as_onnx.Array, tables: Mapping[_Table, str]) -> _Parts:
    """What makes a weight of its `values`; `tables` are the names of those that there are."""
    weight, name = numpy_helper.to_array(stored), stored.name
    place_of = np.zeros(_BYTES, np.uint8)
    place_of[values.view(np.uint8)] = np.arange(len(values))
    places = place_of[weight.view(np.uint8)].reshape(-1, 2)
    packed = places[:, 0] * np.uint8(len(values)) + places[:, 1]
    constants: dict[str, as_onnx.Array] = {
        f"{name}.packed": packed,
        f"{name}.shape": np.array(weight.shape, np.int64),
    }
    pairs = numpy_helper.from_array(_pairs(values), f"{name}{_TABLE}")
    table = tables.get(_table(pairs), pairs.name)
    nodes = [
        helper.make_node("Cast", [f"{name}.packed"], [f"{name}.place"], to=TensorProto.INT32),
        helper.make_node("Gather", [table, f"{name}.place"], [f"{name}.pairs"], axis=0),
        helper.make_node("Reshape", [f"{name}.pairs", f"{name}.shape"], [name]),
    ]
    own = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    return nodes, [*own, pairs] if table == pairs.name else own


def _table(pairs: TensorProto) -> _Table:
    return pairs.data_type, pairs.raw_data


def _pairs(values: as_onnx.Array) -> as_onnx.Array:
    """All pairs of `values`, in order: (their number squared, 2)."""
    first, second = np.meshgrid(values, values, indexing="ij")
    return np.column_stack([first.flatten(), second.flatten()])


def _bytes(nodes: list[onnx.NodeProto], constants: list[TensorProto]) -> int:
    """Of nodes and constants in a file."""
    parts: list[onnx.NodeProto | TensorProto] = [*nodes, *constants]
    sizes: list[int] = [part.ByteSize() for part in parts]
    return sum(sizes) + _FRAME_BYTES * len(sizes)


def unpacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make weights of what `pack` has made of them, in place, as ONNX Runtime does.

    A model without such weights stays what it is.

    before: table int8 (pairs, 2), bytes -> Cast(int32) -> Gather -> Reshape -> w
            -> DequantizeLinear -> Conv
    after:  w int8 -> DequantizeLinear -> Conv

    Returns:
        The model.
    """
    made_by, values = as_onnx.producers(model), as_onnx.constants(model)
    made: dict[str, as_onnx.Array] = {}
    folded: set[str] = set()
    for name in _weights(model):
        chain = _chain(name, made_by)
        weight = _made(chain, values) if chain else None
        if not chain:
            chain = blocks.chain(name, made_by)
            weight = blocks.made(chain, values) if chain else None
        if weight is not None:
            made[name] = weight
            folded.update(node.output[0] for node in chain)
    if made:
        kept = [node for node in model.graph.node if node.output[0] not in folded]
        constants = [numpy_helper.from_array(value, name) for name, value in made.items()]
        _replace(model, kept, [*model.graph.initializer, *constants])
        as_onnx.drop_unused_constants(model)
    return model


def _chain(name: str, made_by: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The Reshape, Gather and Cast that make a tensor; empty where others do."""
    found = []
    for kind, place in (("Reshape", 0), ("Gather", 1), ("Cast", 0)):
        node = made_by.get(name)
        if node is None or node.op_type != kind:
            return []
        found.append(node)
        name = node.input[place]
    return found


def _made(chain: list[onnx.NodeProto], values: dict[str, as_onnx.Array]) -> as_onnx.Array | None:
    """The weight that a chain makes; None where it is none of `pack`'s."""
    reshape, gather, cast = chain
    packed, table = values.get(cast.input[0]), values.get(gather.input[0])
    shape = values.get(reshape.input[1])
    if packed is None or table is None or shape is None:
        return None
    if packed.dtype != np.uint8 or table.dtype not in _MIDDLE or table.shape[1:] != (2,):
        return None
    made: as_onnx.Array = table[packed].reshape(shape)
    return made


def _replace(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: list[TensorProto]
) -> None:
    """Give a model other nodes and constants, in place."""
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
