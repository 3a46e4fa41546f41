"""Storage of int8 weights in fewer bits in Core ML packages, for iOS 18 and later.

Weights that are few different whole numbers are stored as places in a table of int8 numbers; those
from -8 to 7 coremltools itself stores as int4; multiples of such numbers, block by block of input
channels, are stored as int4, with the multiples in the scales. What comes out is the same to the
bit: `scale * codes`, rounded to float16.

The table is scaled before it is looked up, a table with a channel's scale for each output channel,
though one table for all and a scale after it would be smaller: coremltools orders the operations so
for iOS 18, and the other way round from iOS 26 on, where it says that a fault was mended
(`canonicalize_quantized_lut_pattern` in its `optimize_quantization`). Of tables in sparse weights
its tests have this order alone (`TestJointCompressionOps`).

The graph passes here are the last of a conversion and touch weights only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass
from numpy.typing import NDArray

from pipeline.formats.coreml import sparse
from pipeline.formats.weight_blocks import Blocks, in_blocks

_SPACE = "pocketnest"
NAME = f"{_SPACE}::store_in_few_bits"
NAME_SPARSE = f"{_SPACE}::store_in_few_bits_or_sparsely"
"""Of the passes, for a pass pipeline."""

_INDEX_BITS = (1, 2, 3, 4, 6)
"""That places in a table can have, besides 8, which saves nothing."""
_TABLE_BYTES = 512
"""What a table costs besides its content. Measured: 445 on average, 375 of them for a second
operation in the specification, the rest for one more entry of the weight file."""

_SCALE_BYTES = 2
"""Of a float16."""

_INTEGERS = (types.int8, types.int4)

Weight = NDArray[np.int8]


def _index_bits(values: int) -> int | None:
    """Bits of a place in a table of so many values; None where it saves nothing."""
    return next((bits for bits in _INDEX_BITS if 1 << bits >= values), None)


def _is_int4(weight: Weight) -> bool:
    return bool(np.all((weight >= -8) & (weight <= 7)))


def plain_bytes(weight: Weight) -> float:
    """What coremltools stores for iOS 18, without scales: int4 where every number fits, or int8."""
    return weight.size / 2 if _is_int4(weight) else weight.size


def _table_bytes(weight: Weight, channels: int) -> float | None:
    """Of places in a table, and of a table for each of the channels."""
    bits = _index_bits(len(np.unique(weight)))
    if bits is None:
        return None
    return weight.size * bits / 8 + channels * (1 << bits) + _TABLE_BYTES


def _blocks_bytes(weight: Weight) -> float | None:
    found = in_blocks(weight) if weight.ndim > 1 else None
    return None if found is None else weight.size / 2 + _SCALE_BYTES * found.multiples.size


def _sparse_bytes(weight: Weight) -> float | None:
    values = weight[weight != 0]
    if not values.size:
        return None  # a tensor without elements
    return plain_bytes(values) + weight.size / 8 + sparse.OVERHEAD_BYTES


def _sparse_table_bytes(weight: Weight) -> float | None:
    values = weight[weight != 0]
    found = _table_bytes(values, len(weight)) if values.size else None
    return None if found is None else found + weight.size / 8 + sparse.OVERHEAD_BYTES


def _store_table(op: Any, weight: Weight) -> Any:
    indices, table = _looked_up(op, weight, weight)
    return mb.constexpr_lut_to_dense(
        indices=indices, lut=table, before_op=op, name=f"{op.name}_looked_up"
    )


def _store_blocks(op: Any, weight: Weight) -> Any:
    found = in_blocks(weight)
    assert found is not None  # the form would not have been chosen
    scale = op.scale.val
    return mb.constexpr_blockwise_shift_scale(
        data=found.codes.astype(types.np_int4_dtype),
        scale=scale * _by_block(found).astype(scale.dtype),
        before_op=op,
        name=f"{op.name}_blocks",
    )


def _by_block(found: Blocks) -> NDArray[np.uint8]:
    """The multiples of blocks as scales are stored: (out channels, blocks, 1, ...)."""
    return found.multiples.reshape(*found.multiples.shape, *[1] * (found.codes.ndim - 2))


def _blocks_are_exact(weight: Weight, scale: NDArray[Any]) -> bool:
    """Whether every multiple of a scale is a number of its type."""
    found = in_blocks(weight)
    assert found is not None
    exact = scale.astype(np.float64) * _by_block(found)
    return bool(np.all(exact.astype(scale.dtype) == exact))


def _store_sparse(op: Any, weight: Weight) -> Any:
    kind = types.np_int4_dtype if _is_int4(weight) else np.int8
    mask, scaled = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=_mask(weight),
        nonzero_data=weight[weight != 0].astype(kind),
        scale=op.scale,
        before_op=op,
        name=f"{op.name}_sparse",
    )
    return _filled(op, mask, scaled)


def _store_sparse_table(op: Any, weight: Weight) -> Any:
    indices, table = _looked_up(op, weight, weight[weight != 0])
    mask, found = mb.constexpr_lut_to_sparse(
        indices_mask=_mask(weight),
        indices_nonzero_data=indices,
        lut=table,
        before_op=op,
        name=f"{op.name}_looked_up",
    )
    return _filled(op, mask, found)


def _mask(weight: Weight) -> NDArray[Any]:
    mask: NDArray[Any] = (weight != 0).astype(types.np_uint1_dtype)
    return mask


def _filled(op: Any, mask: Any, values: Any) -> Any:
    return mb.constexpr_sparse_to_dense(
        nonzero_data=values, mask=mask, before_op=op, name=f"{op.name}_dense"
    )


def _looked_up(op: Any, weight: Weight, stored: Weight) -> tuple[NDArray[Any], Any]:
    """The places of `stored` in a table, and the table of every channel, scaled.

    Tables are (channels, 1, ..., entries, 1), with zeros where there are fewer values than entries.
    """
    values = np.unique(stored)
    bits = _index_bits(len(values))
    assert bits is not None  # the form would not have been chosen
    entries = np.zeros((1 << bits, 1), np.int8)
    entries[: len(values), 0] = values
    shape = (len(weight), *[1] * (weight.ndim - 1))
    table = mb.constexpr_blockwise_shift_scale(
        data=np.ascontiguousarray(np.broadcast_to(entries, (*shape, *entries.shape))),
        scale=op.scale.val.reshape(*shape, 1, 1),
        before_op=op,
        name=f"{op.name}_table",
    )
    kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
    return np.searchsorted(values, stored).astype(kind), table


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way to store a weight tensor.

    Attributes:
        bytes: that weights take, overhead included; None where they cannot be stored so.
        store: puts what makes the weights in front of the operation that makes them of int8, and
            gives it.
        sparse: zeros are not stored.
        exact: whether what comes out is the same, of weights and their scales.
    """

    bytes: Callable[[Weight], float | None]
    store: Callable[[Any, Weight], Any]
    sparse: bool = False
    exact: Callable[[Weight, NDArray[Any]], bool] = lambda weight, scale: True


FORMS = {
    "blocks": Form(bytes=_blocks_bytes, store=_store_blocks, exact=_blocks_are_exact),
    "table": Form(bytes=lambda w: _table_bytes(w, len(w)), store=_store_table),
    "sparse": Form(bytes=_sparse_bytes, store=_store_sparse, sparse=True),
    "sparse table": Form(bytes=_sparse_table_bytes, store=_store_sparse_table, sparse=True),
}
"""Besides the plain one."""


def smallest(weight: Weight, scale: NDArray[Any], *, sparse: bool = False) -> str | None:
    """The form that takes fewest bytes for int8 weights; None where that is the plain one.

    Args:
        weight: (out channels, ...).
        scale: of the output channels, (out channels, 1, ...).
        sparse: forms that do not store zeros count, too.
    """
    least, found = plain_bytes(weight), None
    for name, form in FORMS.items():
        size = form.bytes(weight) if sparse or not form.sparse else None
        if size is not None and size < least and form.exact(weight, scale):
            least, found = size, name
    return found


@register_pass(namespace=_SPACE, name=NAME.split("::")[1], override=True)
class StoreInFewBits(AbstractGraphPass):  # type: ignore[misc]
    """Stores int8 weights in fewer bits where that is smaller; scales stay as they are.

    before: int8 or int4 weight, scale -> constexpr_blockwise_shift_scale -> conv
    after:  int8 table, scale -> constexpr_blockwise_shift_scale -> table
            uint1 to uint6 places, table -> constexpr_lut_to_dense -> conv
    or:     int4 weight, scales of blocks -> constexpr_blockwise_shift_scale -> conv

    Weights that something else than an int8 convolution reads stay.
    """

    sparse = False

    def apply(self, prog: Any) -> None:
        """Rewrite every function of a MIL program of opset iOS 18, in place."""
        for function in prog.functions.values():
            self._rewrite(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _rewrite(self, block: Any) -> None:
        for op in list(block.operations):
            if op.op_type == "constexpr_blockwise_shift_scale" and _is_int8_weight(op):
                weight = op.data.val.astype(np.int8)
                form = smallest(weight, op.scale.val, sparse=self.sparse)
                if form is not None:
                    _replace(block, op, FORMS[form].store(op, weight))


@register_pass(namespace=_SPACE, name=NAME_SPARSE.split("::")[1], override=True)
class StoreInFewBitsOrSparsely(StoreInFewBits):
    """The same where weights may be stored without their zeros, too.

    before: int8 or int4 weight, scale -> constexpr_blockwise_shift_scale -> conv
    after:  mask, int4 or int8 values, scale -> constexpr_sparse_blockwise_shift_scale
            -> constexpr_sparse_to_dense -> conv
    or:     int8 table, scale -> constexpr_blockwise_shift_scale -> table
            mask, uint1 to uint6 places, table -> constexpr_lut_to_sparse
            -> constexpr_sparse_to_dense -> conv
    or as above.
    """

    sparse = True


def _is_int8_weight(op: Any) -> bool:
    """Whether what an operation makes of integers is read by convolutions of int8 data alone."""
    if op.offset is not None or op.data.val is None or op.data.dtype not in _INTEGERS:
        return False
    weight = op.outputs[0]
    readers = weight.child_ops
    return bool(readers) and all(
        reader.op_type in {"conv", "linear"}
        and reader.weight is weight
        and reader.x.op is not None
        and reader.x.op.op_type == "dequantize"
        for reader in readers
    )


def _replace(block: Any, op: Any, weight: Any) -> None:
    block.replace_uses_of_var_after_op(
        anchor_op=op,
        old_var=op.outputs[0],
        new_var=weight,
        no_check_var_types=True,
        force_replace=True,  # refused for constants otherwise
    )
    block.remove_ops([op])
