"""Sparse storage of int8 weights in Core ML packages, for iOS 18 and later.

A sparse weight is a bit per element and the int8 values of the elements that are not zero. The
graph pass here is the last of a conversion and touches weights only. coremltools' own
`prune_weights` makes the same operations of a finished package, but runs all its passes over the
network again, renames its tensors, and knows no tensor that becomes larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass
from numpy.typing import NDArray

NAME = "pocketnest::store_sparsely"
"""Of the pass, for a pass pipeline."""

OVERHEAD_BYTES = 640
"""What a sparse tensor costs besides its content. Measured: 570 on average, 470 of them for a
second operation in the specification, the rest for one more entry of the weight file, which has a
header of 64 bytes and begins at a multiple of 64."""


def is_smaller(weight: NDArray[np.int8]) -> bool:
    """Whether int8 weights take fewer bytes stored sparsely, overhead included."""
    sparse = np.count_nonzero(weight) + weight.size / 8
    return bool(sparse + OVERHEAD_BYTES < weight.size)


@register_pass(namespace=NAME.split("::")[0], name=NAME.split("::")[1], override=True)
class StoreSparsely(AbstractGraphPass):  # type: ignore[misc]
    """Replaces dense int8 weights by sparse ones where that is smaller; scales stay as they are.

    before: int8 weight, scale -> constexpr_blockwise_shift_scale -> conv
    after:  bits, int8 values that are not 0, scale -> constexpr_sparse_blockwise_shift_scale
            -> constexpr_sparse_to_dense -> conv
    """

    def apply(self, prog: Any) -> None:
        """Rewrite every function of a MIL program of opset iOS 18, in place."""
        for function in prog.functions.values():
            self._rewrite(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _rewrite(self, block: Any) -> None:
        for op in list(block.operations):
            if op.op_type != "constexpr_blockwise_shift_scale" or op.offset is not None:
                continue  # with an offset, zero is not a weight of zero
            data = op.data.val
            if op.data.dtype == types.int8 and is_smaller(data):
                _store_sparsely(block, op, data)


def _store_sparsely(block: Any, op: Any, data: NDArray[np.int8]) -> None:
    nonzero = data != 0
    mask, values = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=nonzero.astype(types.np_uint1_dtype),
        nonzero_data=data[nonzero],
        scale=op.scale,
        before_op=op,
        name=f"{op.name}_sparse",
    )
    weight = mb.constexpr_sparse_to_dense(
        nonzero_data=values, mask=mask, before_op=op, name=f"{op.name}_dense"
    )
    block.replace_uses_of_var_after_op(
        anchor_op=op,
        old_var=op.outputs[0],
        new_var=weight,
        no_check_var_types=True,
        force_replace=True,  # refused for constants otherwise
    )
    block.remove_ops([op])
