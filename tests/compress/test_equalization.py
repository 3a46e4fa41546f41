"""Cross-layer equalization: the same answers, and channels of ranges alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.equalization import equalize, largest, pairs, scale_channels
from pipeline.compress.quantization.joined_channels import Channel, joined_channels, together
from pipeline.recipe.input_shape import square
from tests.making.networks import relative_difference


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)


class _Two(nn.Module):
    """Channels that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = conv(3, 8), conv(8, 8, 1), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.cat([self.one(x), self.other(x)], 1)


class _Residual(nn.Module):
    """Channels that a convolution and a sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return x + self.second(x)


class _Again(nn.Module):
    """One convolution that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = conv(3, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(torch.relu(self.first(x))))


class _Block(nn.Module):
    """Half of the channels go on as they are, beside what a convolution makes of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        kept, given = nn.functional.channel_shuffle(x, 4).chunk(2, 1)
        return torch.cat([kept, self.inner(given)], 1)


def shuffled(*rest: nn.Module) -> nn.Module:
    """Channels that stand beside others, and are shuffled, before convolutions read them."""
    first = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(first, _Block(), _Block(), *rest, conv(8, 8))


BODIES = {
    "normalized": nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8)),
    "without normalization": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8)),
    "linear": nn.Sequential(conv(3, 8, 1), conv(8, 8)),
    "depthwise": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 8)),
    "groups": nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12, groups=2)),
    "two readers": _Two(),
}
FOUND = {"depthwise": 2}
REFUSED = {
    "clamped": nn.Sequential(conv(3, 8), nn.ReLU6(), conv(8, 8)),
    "a sum": _Residual(),
    "used again": _Again(),
}


def prepared(body: nn.Module) -> fx.GraphModule:
    """A graph whose channels differ by orders of magnitude; the body's numbers end in a ReLU6."""
    torch.manual_seed(0)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight)
            module.weight.data *= torch.logspace(-2, 1, module.out_channels)[:, None, None, None]
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = torch.linspace(-1, 1, module.num_features)
            module.running_var.uniform_(0.5, 2)
    net = nn.Sequential(body, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = qat.prepare(net, square(8))
    qat.without_rounding(graph)
    return graph


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def answers(graph: fx.GraphModule) -> Tensor:
    with torch.no_grad():
        found: Tensor = graph(images())
    return found


@pytest.mark.parametrize("kind", BODIES)
def test_the_answers_stay_and_the_channels_grow_alike(kind: str) -> None:
    graph = prepared(BODIES[kind])
    wanted, before = answers(graph), spread(graph)
    assert equalize(graph, lambda: [images()]) == FOUND.get(kind, 1)
    assert relative_difference(answers(graph), wanted) < 1e-5
    assert spread(graph) < 0.51 * before


def spread(graph: fx.GraphModule) -> float:
    """The largest of the first equalized channels by the smallest, as a logarithm."""
    (pair, *_) = pairs(graph)
    seen: list[Tensor] = []
    module = graph.get_submodule(str(pair.rounding.target))
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    answers(graph)
    handle.remove()
    largest = seen[0].abs().amax((0, 2, 3))
    return float(torch.log(largest.max() / largest[largest > 0].min()))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_change_answers_is_left_alone(kind: str) -> None:
    graph = prepared(REFUSED[kind])
    wanted = answers(graph)
    assert equalize(graph, lambda: [images()]) == 0
    assert torch.equal(answers(graph), wanted)


@pytest.mark.parametrize("behind", [(), (nn.MaxPool2d(2),), (nn.AvgPool2d(2),)])
def test_channels_that_stand_beside_others_grow_alike(behind: tuple[nn.Module, ...]) -> None:
    graph = prepared(shuffled(*behind))
    wanted = answers(graph)
    groups = together(joined_channels(graph, images()))
    assert [len(group) for group in groups if len(group) > 8] == [16]  # all that is made
    before = apart(graph, groups[0])
    assert equalize(graph, lambda: [images()]) == 1
    assert relative_difference(answers(graph), wanted) < 1e-5
    assert apart(graph, groups[0]) < 0.7 * before


def apart(graph: fx.GraphModule, group: list[Channel]) -> float:
    """The largest of some channels by the smallest, as a logarithm."""
    nodes = list(dict.fromkeys(node for one in group for node, _ in one.rounded))
    seen = dict(zip(nodes, largest(graph, nodes, lambda: [images()]), strict=True))
    sizes = torch.stack([torch.stack([seen[n][at] for n, at in c.rounded]).amax() for c in group])
    return float(torch.log(sizes.max() / sizes[sizes > 1e-6].min()))


def test_a_channel_that_something_else_has_too_stays() -> None:
    class Summed(nn.Module):
        """The joined channels are added to others as well."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = conv(3, 4), conv(3, 4), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([torch.relu(self.one(x)), torch.relu(self.two(x))], 1)
            return self.last(both) + both

    graph = prepared(Summed())
    wanted = answers(graph)
    assert joined_channels(graph, images()) == []
    assert equalize(graph, lambda: [images()]) == 0
    assert torch.equal(answers(graph), wanted)


def test_one_side_alone_changes_the_answers() -> None:
    graph = prepared(BODIES["normalized"])
    wanted = answers(graph)
    (pair,) = pairs(graph)
    scale_channels(graph, pair, torch.full((8,), 2.0))
    assert relative_difference(answers(graph), wanted) < 1e-5
    graph.get_parameter(str(pair.made[0].target)).data.mul_(2.0)
    assert relative_difference(answers(graph), wanted) > 0.01
