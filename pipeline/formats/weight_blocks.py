"""int8 weights that are whole multiples of 4-bit numbers, block by block of their inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe.weight_forms import INT4_QMAX, MOST_MULTIPLE, block_of

_CODES = 128
"""Absolute values of int8 numbers, up to 127."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Weights as `multiples * codes`.

    Attributes:
        codes: int8 numbers -7..7, (out channels, channels of a group, height, width).
        multiples: of each block, 1..16, uint8 (out channels, blocks). Those of a channel have no
            common divisor, so that a channel's step can be told from the steps of its blocks.
    """

    codes: NDArray[np.int8]
    multiples: NDArray[np.uint8]


def in_blocks(weight: NDArray[np.int8]) -> Blocks | None:
    """Weights (out channels, channels of a group, ...) in blocks; None where they are no such.

    Every multiple is the smallest that leaves numbers of 4 bits.
    """
    size = block_of(weight.shape[1])
    rows = weight.reshape(len(weight), weight.shape[1] // size, -1).astype(np.int16)
    largest, common = np.abs(rows).max(2), np.gcd.reduce(rows, axis=2)
    multiples = _smallest()[largest, np.abs(common)]
    if multiples.min() == 0 or np.gcd.reduce(multiples, axis=1).max() > 1:
        return None
    codes = (rows // multiples[:, :, None]).astype(np.int8).reshape(weight.shape)
    return Blocks(codes=codes, multiples=multiples)


def _smallest() -> NDArray[np.uint8]:
    """By largest number and greatest common divisor, the multiple; 0 where there is none."""
    found = np.zeros((_CODES, _CODES), np.uint8)
    for multiple in range(MOST_MULTIPLE, 0, -1):
        found[: multiple * INT4_QMAX + 1, ::multiple] = multiple
    return found


def times(codes: NDArray[np.int8], multiples: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The weights that codes and multiples make."""
    rows = codes.reshape(*multiples.shape, -1).astype(np.int16) * multiples[:, :, None]
    made: NDArray[np.int8] = rows.astype(np.int8).reshape(codes.shape)
    return made
