"""The int8 weights of a Core ML package, in whatever form they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.coreml.package import Constant, Operation

_INTEGERS = {
    "constexpr_affine_dequantize": "quantized_data",
    "constexpr_blockwise_shift_scale": "data",
    "constexpr_sparse_blockwise_shift_scale": "nonzero_data",
}
"""The argument with the integers, by the operation that makes weights of them: up to iOS 17, from
iOS 18 on, and sparse."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Weight:
    """Weights of int8: `scale * codes`.

    Attributes:
        codes: (out channels, ...).
        scale: of the output channels.
    """

    codes: NDArray[np.int8]
    scale: NDArray[Any]


def int8_weight(weight: Operation, made_by: dict[str, Operation]) -> Int8Weight | None:
    """The weights that an operation makes, dense or sparse; None for others than int8."""
    mask: Constant | None = None
    shape = weight.outputs[0].shape
    if weight.type == "constexpr_sparse_to_dense":
        values = weight.inputs["nonzero_data"]
        if not isinstance(values, tuple):
            return None
        weight = made_by[values[0]]
        mask = _given(weight, "data_mask", made_by)
    if weight.type not in _INTEGERS:
        return None
    data = _given(weight, _INTEGERS[weight.type], made_by)
    if not isinstance(data, np.ndarray) or data.dtype != np.int8:
        return None
    if mask is not None:
        codes = np.zeros(shape, np.int8)
        codes[np.asarray(mask, bool).reshape(shape)] = data.ravel()
        data = codes
    return Int8Weight(codes=data, scale=np.asarray(_given(weight, "scale", made_by)))


def _given(operation: Operation, argument: str, made_by: dict[str, Operation]) -> Constant | None:
    """A constant, whether the operation takes it as an attribute or as an argument."""
    found = operation.attributes.get(argument)
    return operation.constant(argument, made_by) if found is None else found
