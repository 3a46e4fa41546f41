"""Ranges by all that was seen: histograms, what is chosen of them, and whose ranges stay whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn

from pipeline.base.errors import InputError
from pipeline.compress.quantization import grid, qat
from pipeline.compress.quantization.bias_correction import InputMeans
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize, FixedFakeQuantize
from pipeline.compress.quantization.ranges import Histogram, Observed, Ranges, answering
from pipeline.recipe.input_shape import square


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counted(*parts: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def error(numbers: torch.Tensor, low: float, high: float) -> float:
    """Mean squared error of what the grid over a range makes of numbers, one by one."""
    scale, zero = grid.activation_grid(torch.tensor(low), torch.tensor(high))
    rounded = torch.fake_quantize_per_tensor_affine(numbers, scale, zero, grid.QMIN, grid.QMAX)
    return float((rounded - numbers).square().mean())


def test_what_lies_beyond_the_bins_makes_them_wider_and_loses_nothing() -> None:
    parts = [drawn(500), 9 * drawn(500, seed=1), torch.zeros(7), 0.1 * drawn(500, seed=2)]
    histogram, numbers = counted(*parts), torch.cat(parts)
    assert histogram.counts.sum() == len(numbers)
    assert (histogram.low, histogram.high) == (float(numbers.min()), float(numbers.max()))
    width = histogram.reach / (len(histogram.counts) // 2)
    for at in (-3.0, -0.5, 0.0, 0.4, 5.0):
        below = float(histogram.counts[histogram.centres < at].sum())
        near = int(((numbers - at).abs() <= 2 * width).sum())
        assert abs(below - int((numbers < at).sum())) <= near + 1


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9])
def test_a_percentile_leaves_out_as_many_at_either_end(share: float) -> None:
    numbers = torch.cat([drawn(20_000), 3 * drawn(20_000, seed=1) + 1])
    low, high = counted(*numbers.split(7_000)).percentile(share)
    cut = (1 - share / 100) / 2
    wanted = torch.quantile(numbers, torch.tensor([cut, 1 - cut])).tolist()
    assert (low, high) == pytest.approx(wanted, rel=0.01)


def test_all_is_the_hundredth_percentile() -> None:
    numbers = drawn(1_000)
    assert counted(numbers).percentile(100.0) == (float(numbers.min()), float(numbers.max()))


@pytest.mark.parametrize("kind", ["bell", "outlier", "rectified", "even", "lopsided"])
def test_the_nearest_range_is_that_of_the_least_squares(kind: str) -> None:
    bell = drawn(20_000)
    numbers = {
        "bell": bell,
        "outlier": torch.cat([bell, torch.tensor([20.0])]),
        "rectified": bell.relu(),
        "even": torch.linspace(-1, 2, 20_000),
        "lopsided": torch.where(bell < 0, 0.05 * bell, bell),
    }[kind]
    low, high = counted(*numbers.split(6_000)).nearest()
    found, whole = error(numbers, low, high), error(numbers, *_ends(numbers))
    assert found <= whole * 1.001
    tried = [(a / 25, b / 25) for a in range(5, 26, 2) for b in range(1, 26)]
    ends = _ends(numbers)
    assert found <= min(error(numbers, a * ends[0], b * ends[1]) for a, b in tried) * 1.05
    if kind == "outlier":
        assert high < 0.98 * ends[1]
        assert found < whole
    if kind == "even":
        assert (low, high) == pytest.approx(ends, abs=0.04)
    if kind == "rectified":
        assert low == 0.0


def _ends(numbers: torch.Tensor) -> tuple[float, float]:
    return float(numbers.min()), float(numbers.max())


class _Classifier(nn.Module):
    """Two convolutions, a concatenation, the mean of the last one's images as the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([torch.relu(self.first(x)), torch.relu(self.second(x))], 1)
        return torch.relu(self.last(both)).mean((2, 3))


def prepared() -> fx.GraphModule:
    torch.manual_seed(0)
    return qat.prepare(_Classifier(), square(8))


def learned(graph: fx.GraphModule) -> list[ActivationFakeQuantize]:
    return [
        module
        for module in graph.modules()
        if isinstance(module, ActivationFakeQuantize) and not isinstance(module, FixedFakeQuantize)
    ]


def images() -> list[torch.Tensor]:
    return [drawn(4, 3, 8, 8, seed=seed) for seed in range(3)]


def ranges_of(graph: fx.GraphModule, **how: Any) -> list[tuple[float, float]]:
    qat.calibrate(graph, images, Ranges(**how))
    return [(float(one.low), float(one.high)) for one in learned(graph)]


def test_min_max_is_all_that_was_seen_in_any_batch() -> None:
    (image, *_) = ranges_of(prepared(), kind="min_max")
    every = torch.cat(images())
    assert image == (float(every.min()), float(every.max()))


@pytest.mark.parametrize("kind", ["moving_average", "min_max", "percentile", "mse"])
def test_ranges_are_those_of_every_batch_whoever_else_looks_on(kind: str) -> None:
    graph, other = prepared(), prepared()
    alone = ranges_of(graph, kind=kind)
    qat.calibrate(other, images, Ranges(kind=kind), InputMeans(other))
    assert [(float(one.low), float(one.high)) for one in learned(other)] == alone
    qat.calibrate(other, lambda: images()[:1], Ranges(kind=kind))
    assert [(float(one.low), float(one.high)) for one in learned(other)] != alone


@pytest.mark.parametrize("kind", ["percentile", "mse"])
def test_the_answers_and_what_a_mean_makes_them_of_keep_their_whole_range(kind: str) -> None:
    graph = prepared()
    whole = ranges_of(graph, kind="min_max")
    clipped = ranges_of(graph, kind=kind, percentile=90.0)
    answers = [one in answering(graph) for one in learned(graph)]
    assert sum(answers) >= 2
    for answer, before, after in zip(answers, whole, clipped, strict=True):
        assert (before == after) if answer else after[1] <= before[1]
    clips = [before[1] > after[1] for before, after in zip(whole, clipped, strict=True)]
    assert kind == "mse" or clips == [not answer for answer in answers]


def test_tensors_that_share_a_grid_share_the_range_of_all() -> None:
    graph = prepared()
    ranges_of(graph, kind="mse")
    tied = [one for one in learned(graph) if len(one.tied) > 1]
    assert tied
    for one in tied:
        high = max(float(other.high) for other in one.tied)
        assert float(one.scale) == pytest.approx(high / 255, rel=1e-3)
        assert int(one.zero_point) == grid.QMIN


def test_what_was_never_seen_is_refused() -> None:
    graph = prepared()
    qat.calibrate(graph, list, Ranges(kind="mse"))
    with pytest.raises(InputError, match="nothing was seen"):
        qat.refuse_bad_grids(graph)


def test_numbers_that_are_not_finite_are_refused() -> None:
    graph = prepared()
    qat.calibrate(graph, lambda: [torch.full((2, 3, 8, 8), float("nan"))], Ranges(kind="mse"))
    with pytest.raises(InputError, match="no float16 numbers above 0"):
        qat.refuse_bad_grids(graph)


def test_counting_leaves_nothing_in_the_graph() -> None:
    graph = prepared()
    state = copy.deepcopy(graph.state_dict())
    with Observed(graph):
        pass
    assert all(not module._forward_pre_hooks for module in graph.modules())
    assert all(torch.equal(state[name], found) for name, found in graph.state_dict().items())
