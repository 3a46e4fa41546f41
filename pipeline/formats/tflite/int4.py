"""Whole numbers of 4 bits as TFLite files store them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 7
"""Of the magnitudes that weights have; -8 is left out, so that both signs reach as far."""


def packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Numbers -8..7 in the order of memory, two to a byte, the first in the low four bits.

    An odd one out has a zero beside it.
    """
    flat = codes.reshape(-1)
    even = np.append(flat, np.zeros(flat.size % 2, np.int8)).astype(np.uint8) & 0xF
    return (even[::2] | even[1::2] << 4).astype(np.uint8)


def unpacked(stored: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """The first `count` numbers of what `packed` made, each with its sign."""
    halves = np.stack([stored << 4, stored & 0xF0], axis=-1).reshape(-1)
    numbers: NDArray[np.int8] = (halves.view(np.int8) >> 4).astype(np.int8)
    return numbers[:count]
