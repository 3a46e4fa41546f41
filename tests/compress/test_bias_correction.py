"""Bias correction: rounded weights leave the means of channels where they were."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.bias_correction import InputMeans, correct_biases
from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize
from pipeline.compress.quantization.ranges import Ranges
from pipeline.recipe.input_shape import square


class _Net(nn.Module):
    """Two layers of positive numbers, whose errors add up; nothing between, so that means pass."""

    def __init__(self, normalized: bool, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 1, bias=bias)
        self.norm = nn.BatchNorm2d(64) if normalized else nn.Identity()
        self.last = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x))).mean((2, 3))


def images(seed: int) -> Tensor:
    return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def calibrated(normalized: bool, bias: bool) -> tuple[fx.GraphModule, InputMeans]:
    torch.manual_seed(0)
    net = _Net(normalized, bias)
    if normalized:
        net.norm.running_mean.uniform_(-1, 1)
        net.norm.running_var.uniform_(0.5, 2)
        net.norm.weight.data.uniform_(-2, 2)
    graph = qat.prepare(net, square(8))
    means = InputMeans(graph)
    qat.calibrate(graph, lambda: [images(0), images(1)], Ranges(kind="min_max"), means)
    return graph, means


def answers(graph: fx.GraphModule, *, rounds: bool) -> Tensor:
    """Mean logits of the calibration images, with weights rounded or not, nothing else."""
    for module in graph.modules():
        if isinstance(module, WeightFakeQuantize):
            module.enable_fake_quant(rounds)
    with torch.no_grad():
        return torch.cat([graph(images(0)), graph(images(1))]).mean(0)


@pytest.mark.parametrize(("normalized", "bias"), [(True, False), (True, True), (False, True)])
def test_the_means_of_the_float_network_come_back(normalized: bool, bias: bool) -> None:
    graph, means = calibrated(normalized, bias)
    wanted, before = answers(graph, rounds=False), answers(graph, rounds=True)
    moved = correct_biases(graph, means)
    after = answers(graph, rounds=True)
    assert (before - wanted).abs().max() > 1e-4
    assert (after - wanted).abs().max() < 0.02 * (before - wanted).abs().max()
    assert len(moved) == 2
    assert any("running_mean" in name for name in moved) is normalized


def test_what_was_added_can_be_taken_off_again() -> None:
    graph, means = calibrated(True, False)
    before = copy.deepcopy(graph.state_dict())
    moved = correct_biases(graph, means)
    state = graph.state_dict()
    changed = {n for n, t in state.items() if not torch.equal(t, before[n])}
    assert changed - {n for n in state if n.endswith(".scale")} == moved.keys()
    for name, added in moved.items():
        assert torch.allclose(state[name] - added, before[name], atol=1e-6)


def test_a_convolution_without_a_bias_stays_as_it_is() -> None:
    graph, means = calibrated(False, False)
    assert len(correct_biases(graph, means)) == 1


class _Again(nn.Module):
    """One convolution that is run twice, so that its bias is added to two means."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(x)).mean((2, 3))


def test_a_bias_that_is_added_twice_stays_as_it_is() -> None:
    graph = qat.prepare(_Again(), square(8))
    means = InputMeans(graph)
    qat.calibrate(graph, lambda: [images(0)], Ranges(kind="min_max"), means)
    assert correct_biases(graph, means) == {}
