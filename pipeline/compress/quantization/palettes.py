"""Palettes: the few values that the weights of a layer are allowed.

A palette lies on the int8 grid, so that kernels and activations stay int8: a weight is
`scale[channel] * palette[index]`, with whole numbers -127..127 in the palette. Zero is always among
them, so that weights of zero stay zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.compress.quantization import grid

_LEVELS = 2 * grid.WEIGHT_QMAX + 1


class Palette(NamedTuple):
    """Values for the weights of a layer.

    Attributes:
        values: whole numbers -127..127 as float32, ascending, zero among them: (size). Where
            fewer are enough, some are there more than once.
        error: sum of the squares of what the weights are off by.
    """

    values: Tensor
    error: float


def nearest_palette(weight: Tensor, scales: Tensor, size: int) -> Palette:
    """The palette with the least squared error over all weights of a layer.

    Weights are counted by the int8 step that they are nearest to, each with the square of its
    channel's scale. Of so few places the best partition is found exactly, by dynamic programming
    (Wang and Song 2011, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic
    Programming", The R Journal 3/2).

    Args:
        weight: (out channels, ...).
        scales: of int8, one per output channel.
        size: of the palette.

    """
    by_channel = scales.reshape(-1, *[1] * (weight.dim() - 1))
    steps = torch.round(weight.detach() / by_channel).clamp(-grid.WEIGHT_QMAX, grid.WEIGHT_QMAX)
    places = (steps + grid.WEIGHT_QMAX).long().flatten()
    weights = (by_channel.double() ** 2).expand_as(weight).flatten()
    counts = torch.zeros(_LEVELS, dtype=torch.float64).index_add_(0, places.cpu(), weights.cpu())
    values = torch.arange(_LEVELS, dtype=torch.float64) - grid.WEIGHT_QMAX
    centres = _centres(values, counts, size)
    palette = with_zero(centres).sort().values
    middles = (palette[1:] + palette[:-1]) / 2
    rounded = palette[torch.bucketize(weight.detach() / by_channel, middles)] * by_channel
    return Palette(palette, float((rounded - weight.detach()).double().square().sum()))


def with_zero(palette: Tensor) -> Tensor:
    """Whole numbers of int8, of which the one next to zero is zero."""
    values = palette.round().clamp(-grid.WEIGHT_QMAX, grid.WEIGHT_QMAX)
    nearest = torch.zeros_like(values, dtype=torch.bool)
    nearest[values.abs().argmin()] = True
    return torch.where(nearest, torch.zeros_like(values), values)


def _centres(values: Tensor, counts: Tensor, size: int) -> Tensor:
    """Means of the `size` intervals of `values` that have the least squared error: float32."""
    used = counts > 0
    values, counts = values[used], counts[used]
    number = len(values)
    if number <= size:
        return torch.cat([values, values.new_zeros(size - number)]).float()
    sums = [_from_zero(counts * values**power) for power in (0, 1, 2)]
    # cost[a, b]: of one interval of the values a..b, both included.
    weight, first, second = (total[None, 1:] - total[:-1, None] for total in sums)
    cost = (second - first**2 / weight.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0.0)
    cost = torch.where(torch.ones_like(cost).triu().bool(), cost, torch.inf)
    best, begins = cost[0], list[Tensor]()
    for _ in range(1, size):
        # The last interval begins at a, behind the best of the values before it.
        before = torch.cat([best.new_full((1,), torch.inf), best[:-1]])
        best, begin = (before[:, None] + cost).min(0)
        begins.append(begin)
    ends, centres = number, []
    for begin in [*reversed(begins), torch.zeros(number)]:
        start = int(begin[ends - 1])
        of_interval = slice(start, ends)
        centres.append((values * counts)[of_interval].sum() / counts[of_interval].sum())
        ends = start
    return torch.stack(centres).float()


def _from_zero(numbers: Tensor) -> Tensor:
    return torch.cat([numbers.new_zeros(1), numbers.cumsum(0)])
