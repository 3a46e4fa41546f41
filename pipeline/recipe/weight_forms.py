"""The forms that the weights of a layer can have."""

from __future__ import annotations

from typing import Literal, get_args

WeightForm = Literal["int8", "int4", "int4_blocks", "palette16", "palette64"]
WEIGHT_FORMS: tuple[WeightForm, ...] = get_args(WeightForm)

WEIGHT_LIMITS = ("size_mb", "download_mb", "accuracy_drop_pt")
"""What forms of layers can be chosen for: keys of `qat.weights`."""

INT4_QMAX = 7
"""Weights of 4 bits use -7..7: TFLite's kernels take a symmetric range, as for int8."""

MOST_MULTIPLE = 16
"""Of a channel's step: the step of a block of `int4_blocks`, 1 or more. 7 * 16 is an int8."""
_BLOCK, _SMALLEST_BLOCK = 32, 8

BITS: dict[WeightForm, int] = {
    "int8": 8,
    "int4": 4,
    "int4_blocks": 4,
    "palette16": 4,
    "palette64": 6,
}
"""That tell the values of a weight apart."""

PALETTES: dict[WeightForm, int] = {"palette16": 16, "palette64": 64}
"""Number of values, by the form."""


def block_of(inputs: int) -> int:
    """Input channels of a block of `int4_blocks`, of a layer that has so many (of a group).

    As many as divide them, 32 at most. Where fewer than 8 do, a block is all of them.
    """
    size = next(size for size in range(min(_BLOCK, inputs), 0, -1) if inputs % size == 0)
    return size if size >= _SMALLEST_BLOCK else inputs
