"""Palettes: the best few values of int8 for the weights of a layer, zero among them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.compress.quantization import grid, palettes
from pipeline.compress.quantization.palettes import nearest_palette, with_zero

COUNTED = st.dictionaries(st.integers(-127, 127), st.floats(0.5, 20.0), min_size=1, max_size=9)


def partitions(number: int, size: int) -> Iterator[list[slice]]:
    """Every way to cut so many values in order into `size` intervals."""
    for cuts in combinations(range(1, number), size - 1):
        ends = [0, *cuts, number]
        yield [slice(a, b) for a, b in pairwise(ends)]


def squared_error(values: Tensor, counts: Tensor, centres: Tensor) -> float:
    nearest = (values[:, None] - centres[None].double()).abs().min(1).values
    return float((counts * nearest**2).sum())


@settings(deadline=None, max_examples=60)
@given(counted=COUNTED, size=st.integers(2, 4))
def test_no_other_partition_is_better(counted: dict[int, float], size: int) -> None:
    """Beside all that there are, of as many values as can be gone through."""
    values = torch.tensor(sorted(counted), dtype=torch.float64)
    counts = torch.tensor([counted[int(value)] for value in values], dtype=torch.float64)
    found = squared_error(values, counts, palettes._centres(values, counts, size))
    if len(values) <= size:
        assert found == 0
        return
    best = min(
        sum(
            float(
                (counts[i] * (values[i] - (values * counts)[i].sum() / counts[i].sum()) ** 2).sum()
            )
            for i in intervals
        )
        for intervals in partitions(len(values), size)
    )
    assert found == pytest.approx(best, rel=1e-6, abs=1e-6)


def layer(seed: int = 0) -> Tensor:
    """Weights whose channels have very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 0, 24)[:, None, None, None]
    return torch.randn(24, 16, 3, 3, generator=generator) * sizes


@pytest.mark.parametrize("size", [16, 64])
def test_values_are_whole_numbers_of_int8_with_zero_among_them(size: int) -> None:
    weight = layer()
    found = nearest_palette(weight, grid.weight_scales(weight), size).values
    assert len(found) == size
    assert torch.equal(found, found.round())
    assert torch.equal(found, found.sort().values)
    assert 0.0 in found
    assert found.abs().max() <= grid.WEIGHT_QMAX


def test_the_error_is_that_of_the_weights_and_less_with_more_values() -> None:
    weight = layer()
    scales = grid.weight_scales(weight)
    by_channel = scales.reshape(-1, 1, 1, 1)
    errors = {}
    for size in (4, 16, 64):
        values, errors[size] = nearest_palette(weight, scales, size)
        apart = (weight / by_channel)[..., None] - values
        wanted = ((apart.abs().min(-1).values * by_channel) ** 2).sum()
        assert errors[size] == pytest.approx(float(wanted), rel=1e-4)
    assert errors[4] > errors[16] > errors[64]


def test_it_beats_equal_steps_and_kmeans_from_random_starts() -> None:
    weight = layer(1)
    scales = grid.weight_scales(weight)
    by_channel = scales.reshape(-1, 1, 1, 1)
    steps, weights = (weight / by_channel).flatten(), (by_channel**2).expand_as(weight).flatten()

    def error(centres: Tensor) -> float:
        return float((weights * (steps[:, None] - centres).abs().min(1).values ** 2).sum())

    found = nearest_palette(weight, scales, 16).error
    assert found < error(torch.linspace(-127, 127, 16))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        centres = steps[torch.randperm(len(steps), generator=generator)[:16]].sort().values
        for _ in range(30):
            nearest = (steps[:, None] - centres).abs().argmin(1)
            sums = torch.zeros(16).index_add_(0, nearest, steps * weights)
            counts = torch.zeros(16).index_add_(0, nearest, weights)
            centres = torch.where(counts > 0, sums / counts.clamp(min=1e-9), centres)
        # Values are whole numbers, and one is zero: that costs a little.
        assert found < 1.02 * error(centres)


def test_weights_of_few_values_are_kept_as_they_are() -> None:
    """As of a network whose weights were shared before."""
    values = torch.tensor([-127.0, -60, -3, 0, 3, 9, 127])
    draws = torch.randint(len(values), (8, 40), generator=torch.Generator().manual_seed(0))
    draws[:, 0] = 0  # every channel has its largest
    weight = values[draws] * 0.25
    found = nearest_palette(weight, torch.full((8,), 0.25), 16)
    assert found.error == 0
    assert set(values.tolist()) <= set(found.values.tolist())


def test_the_value_next_to_zero_becomes_zero() -> None:
    found = with_zero(torch.tensor([-200.4, -3.6, 2.4, 50.5]))
    assert found.tolist() == [-127, -4, 0, 50]
