"""int8 weights as multiples of 4-bit numbers, block by block."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.formats.weight_blocks import in_blocks, times
from pipeline.recipe.weight_forms import block_of


def weights(multiples: list[list[int]]) -> np.ndarray:
    """Numbers -7..7 of 64 inputs, all of them, times the multiples of two blocks a channel."""
    codes = np.resize(np.arange(-7, 8), (len(multiples), 64, 3, 3))
    return (codes * np.array(multiples).repeat(32, 1)[:, :, None, None]).astype(np.int8)


def test_blocks_make_the_weights_again() -> None:
    multiples = [[1, 16], [5, 2], [16, 15]]
    found = in_blocks(weights(multiples))
    assert found is not None
    assert found.multiples.tolist() == multiples
    assert np.abs(found.codes).max() == 7
    assert np.array_equal(times(found.codes, found.multiples), weights(multiples))


def test_a_block_of_zeros_has_the_multiple_one() -> None:
    found = in_blocks(weights([[0, 16], [0, 0]]))
    assert found is not None
    assert found.multiples.tolist() == [[1, 16], [1, 1]]


@pytest.mark.parametrize("multiples", [[[2, 4]], [[16, 16]], [[1, 17]]])
def test_what_a_reader_could_not_tell_is_refused(multiples: list[list[int]]) -> None:
    """Scales of blocks with a common divisor say another step; 17 is no multiple."""
    assert in_blocks(weights(multiples)) is None


@pytest.mark.parametrize(("inputs", "size"), [(64, 32), (144, 24), (24, 24), (7, 7), (37, 37)])
def test_a_block_is_the_largest_part_of_the_inputs(inputs: int, size: int) -> None:
    assert block_of(inputs) == size
