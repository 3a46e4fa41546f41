"""The int8 weights of a Core ML package, in whatever form they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.formats.coreml.compressed import lut_to_dense
from pipeline.formats.coreml.package import Constant, Operation
from pipeline.formats.weight_blocks import times
from pipeline.recipe.weight_forms import MOST_MULTIPLE

_INTEGERS = {
    "constexpr_affine_dequantize": "quantized_data",
    "constexpr_blockwise_shift_scale": "data",
    "constexpr_sparse_blockwise_shift_scale": "nonzero_data",
    "constexpr_lut_to_dense": "indices",
    "constexpr_lut_to_sparse": "indices_nonzero_data",
}
"""The argument with the integers, by the operation that makes weights of them: up to iOS 17, from
iOS 18 on, sparse, looked up in a table, and both."""
_MASKS = {
    "constexpr_sparse_blockwise_shift_scale": "data_mask",
    "constexpr_lut_to_sparse": "indices_mask",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Int8Weight:
    """Weights of int8, stored so or in fewer bits: `scale * codes`.

    Attributes:
        codes: (out channels, ...).
        scale: of the output channels.
    """

    codes: NDArray[np.int8]
    scale: NDArray[Any]


def int8_weight(weight: Operation, made_by: dict[str, Operation]) -> Int8Weight | None:
    """The weights that an operation makes, in any form; None for others than int8."""
    shape = weight.outputs[0].shape
    if weight.type == "constexpr_sparse_to_dense":
        values = weight.inputs["nonzero_data"]
        if not isinstance(values, tuple):
            return None
        weight = made_by[values[0]]
    if weight.type not in _INTEGERS:
        return None
    stored = _given(weight, _INTEGERS[weight.type], made_by)
    if not isinstance(stored, np.ndarray):
        return None
    mask = _given(weight, _MASKS[weight.type], made_by) if weight.type in _MASKS else None
    kept = np.ones(shape, bool) if mask is None else np.asarray(mask, bool).reshape(shape)
    codes = np.zeros(shape, stored.dtype)
    codes[kept] = stored.ravel()
    scaled: Operation | None = weight
    if "lut" in weight.inputs:
        scaled = _table(weight, made_by)
        entries = None if scaled is None else _given(scaled, "data", made_by)
        if not isinstance(entries, np.ndarray):
            return None
        found = lut_to_dense(torch.from_numpy(codes), torch.from_numpy(np.array(entries))).numpy()
        codes = np.where(kept, found, np.zeros((), found.dtype))
    if scaled is None or codes.dtype != np.int8:
        return None
    scale = np.asarray(_given(scaled, "scale", made_by))
    return _of_channels(Int8Weight(codes=codes, scale=scale))


def _of_channels(weight: Int8Weight) -> Int8Weight | None:
    """The same weights on one scale for each output channel, where blocks of inputs have their own.

    Those of a channel are whole multiples of it without a common divisor, so that it is what all
    of them can be divided by; of float16 numbers each is a whole number of the smallest one.
    """
    if weight.scale.ndim < 2 or weight.scale.shape[1] == 1:
        return weight
    whole = (weight.scale.astype(np.float64) / 2.0**-24).astype(np.int64)
    common = np.gcd.reduce(whole, axis=1, keepdims=True)
    multiples = (whole // common).reshape(whole.shape[:2])
    if multiples.max() > MOST_MULTIPLE:
        return None
    scale = (common * 2.0**-24).astype(weight.scale.dtype)
    return Int8Weight(codes=times(weight.codes, multiples.astype(np.uint8)), scale=scale)


def _table(weight: Operation, made_by: dict[str, Operation]) -> Operation | None:
    """What scales the table that weights are looked up in; None where nothing does."""
    given = weight.inputs["lut"]
    made = made_by[given[0]] if isinstance(given, tuple) else None
    return made if made is not None and made.type == "constexpr_blockwise_shift_scale" else None


def _given(operation: Operation, argument: str, made_by: dict[str, Operation]) -> Constant | None:
    """A constant, whether the operation takes it as an attribute or as an argument."""
    found = operation.attributes.get(argument)
    return operation.constant(argument, made_by) if found is None else found
