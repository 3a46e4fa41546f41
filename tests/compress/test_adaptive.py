"""Adaptive rounding: what it sees of a layer, and that answers move less than by the nearest."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline.compress.quantization import qat, side_by_side
from pipeline.compress.quantization.adaptive import (
    input_columns,
    round_adaptively,
    round_all_adaptively,
)
from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize, only_round
from pipeline.compress.quantization.few_bits import (
    WeightedLayer,
    few_bit_layers,
    rounding_of,
    take_forms,
    weighted_layers,
)
from pipeline.recipe.input_shape import square
from pipeline.recipe.weight_forms import WEIGHT_FORMS, WeightForm
from tests.making.graphs import aten, attribute, in_graph

FEWER: tuple[WeightForm, ...] = WEIGHT_FORMS[1:]
SIDE = 16


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((1, 1), [1, 1], [0, 0], [1, 1], 1),
        ((3, 3), [1, 1], [1, 1], [1, 1], 1),
        ((3, 3), [2, 2], [1, 1], [1, 1], 4),
        ((3, 3), [1, 1], [2, 2], [2, 2], 2),
        ((1, 5), [1, 2], [0, 2], [1, 1], 8),
        ((2, 2), [1, 1], "same", [1, 1], 1),
        ((3, 3), [1, 1], "valid", [1, 1], 1),
    ],
)
def test_weights_times_columns_are_the_answers(
    kernel: tuple[int, int],
    stride: list[int],
    padding: list[int] | str,
    dilation: list[int],
    groups: int,
) -> None:
    torch.manual_seed(0)
    images, weight = torch.randn(2, 8, 7, 7), torch.randn(16, 8 // groups, *kernel)
    wanted = F.conv2d(images, weight, None, stride, padding, dilation, groups)  # type: ignore[arg-type]
    columns = input_columns(images, weight, None, stride, padding, dilation, groups)
    found = weight.reshape(groups, 16 // groups, -1) @ columns
    by_place = wanted.reshape(2, groups, 16 // groups, -1).permute(1, 2, 0, 3).flatten(2)
    assert torch.allclose(found, by_place, atol=1e-4)


def test_of_large_maps_some_places_are_taken() -> None:
    columns = input_columns(torch.randn(3, 4, 56, 56), torch.randn(8, 4, 1, 1))
    assert columns.shape[:2] == (1, 4)
    assert 3 * 100 < columns.shape[2] <= 3 * 400


def layer_of(weight: Tensor, groups: int = 1) -> WeightedLayer:
    graph = fx.Graph()
    args = (graph.placeholder("x"), graph.placeholder("w"), None, [1, 1], [0, 0], [1, 1], groups)
    conv = graph.call_function(aten.conv2d.default, args)
    return WeightedLayer(
        name="conv",
        roundings=("rounding",),
        module=WeightFakeQuantize(),
        weight=weight,
        convolutions=(conv,),
    )


def inputs(groups: int, number: int, seed: int = 0) -> Tensor:
    """Inputs that go together, as a layer's do: (groups, inputs, places)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(groups, number, number, generator=generator) / number**0.5
    sizes = torch.logspace(-1, 0.5, number)[:, None]
    found = mixed @ torch.randn(groups, number, 400, generator=generator) * sizes
    found[:, 3] = 0  # as behind a ReLU that never fires
    return found.relu()


@pytest.mark.parametrize("form", FEWER)
@pytest.mark.parametrize("groups", [1, 2])
def test_the_answers_move_less_than_by_rounding_to_the_nearest(
    form: WeightForm, groups: int
) -> None:
    weight = torch.randn(16, 36, 1, 1, generator=torch.Generator().manual_seed(1))
    before = weight.clone()
    seen = inputs(groups, 36)

    def error(found: Tensor) -> float:
        moved = (found - weight).reshape(groups, 16 // groups, -1) @ seen
        return float(moved.square().sum())

    module = rounding_of(weight, form, WeightFakeQuantize())
    module.enable_fake_quant(True)
    nearest = error(module(weight).detach())
    with torch.no_grad():
        found = round_adaptively(layer_of(weight, groups), module, seen, seen)
    assert torch.equal(weight, before)
    assert error(found) < 0.7 * nearest
    if form != "int4":
        module.keep_step()
    assert torch.allclose(module(found), found, rtol=2e-3, atol=1e-6), "it rounds to itself"


def test_a_layer_makes_good_what_those_before_it_changed() -> None:
    """Its inputs are off; with its weights at 64 values it is nearer than the float weights."""
    weight = torch.randn(16, 36, 1, 1, generator=torch.Generator().manual_seed(1))
    exact = inputs(1, 36)
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2))
    rounded = 0.9 * exact + 0.05 * noise
    wanted = weight.reshape(1, 16, 36) @ exact

    def error(found: Tensor) -> float:
        return float((found.reshape(1, 16, 36) @ rounded - wanted).square().sum())

    module = rounding_of(weight, "palette64", WeightFakeQuantize())
    module.enable_fake_quant(True)
    with torch.no_grad():
        found = round_adaptively(layer_of(weight), module, exact, rounded)
    assert error(found) < 0.8 * error(weight)
    assert error(found) < 0.8 * error(module(weight).detach())


# Of graphs


class Net(nn.Module):
    """A stem, a block with what goes past it, groups, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.conv1 = nn.Conv2d(16, 32, 3, 1, 1, groups=4)
        self.conv2 = nn.Conv2d(32, 16, 1)
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def images(count: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(count, 3, 4, 4, generator=generator)
    fine = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return F.interpolate(smooth, SIDE, mode="bilinear") + 0.3 * fine


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    found = qat.prepare(Net(), square(SIDE))
    qat.calibrate(found, lambda: images().split(16))
    return found


def answers(graph: fx.GraphModule, forms: Sequence[str], rounding: str) -> Tensor:
    graph = copy.deepcopy(graph)
    names = [layer.name for layer in weighted_layers(graph)]
    take_forms(graph, dict(zip(names, forms * len(names), strict=False)))  # type: ignore[arg-type]
    if rounding == "adaptive":
        round_all_adaptively(graph, lambda: images().split(16))
    only_round(graph)
    with torch.no_grad():
        return graph(images(64, seed=1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forms", [["int4"], ["palette16"], ["int4", "palette16", "int8"]])
def test_a_network_answers_nearer_to_the_float_one(forms: list[str], graph: fx.GraphModule) -> None:
    """On other images than those that it was rounded on."""
    qat.without_rounding(graph)
    with torch.no_grad():
        wanted = graph(images(64, seed=1))
    apart = {
        rounding: float((answers(graph, forms, rounding) - wanted).square().mean())
        for rounding in ("nearest", "adaptive")
    }
    assert apart["adaptive"] < 0.8 * apart["nearest"]


def test_side_by_side_is_the_float_network_and_the_rounded_one(graph: fx.GraphModule) -> None:
    graph = copy.deepcopy(graph)
    both = side_by_side.SideBySide(graph, images().split(16))
    with torch.no_grad():
        both.take_more(next(iter(graph.graph.nodes)))
        for node in graph.graph.nodes:
            both.compute(node)
        (answer,) = node.all_input_nodes
        exact, rounded = (torch.cat(parts) for parts in both.found[answer])
        qat.without_rounding(graph)
        assert torch.equal(exact, torch.cat([graph(x) for x in images().split(16)]))
        only_round(graph)
        assert torch.equal(rounded, torch.cat([graph(x) for x in images().split(16)]))


def enabled(graph: fx.GraphModule) -> list[Tensor]:
    modules = [one for one in graph.modules() if isinstance(one, FakeQuantizeBase)]
    return [one.fake_quant_enabled for one in modules]


def test_what_was_added_to_biases_and_means_is_said(graph: fx.GraphModule) -> None:
    graph = copy.deepcopy(graph)
    names = [layer.name for layer in weighted_layers(graph)]
    take_forms(graph, dict.fromkeys(names, "int4"))
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    switches = [one.clone() for one in enabled(graph)]
    moved = round_all_adaptively(graph, lambda: images().split(16))
    after = graph.state_dict()
    weights = {f"{name}.weight" for name in ("stem.0", "conv1", "conv2", "fc")}
    for name, added in moved.items():
        assert torch.allclose(after[name] - before[name], added, atol=1e-6)
    changed = {name for name, one in before.items() if not torch.equal(one, after[name])}
    assert set(moved) <= changed
    others = {name for name in changed if not name.endswith(("step", "scale", "_tracked"))}
    assert others == weights | set(moved)
    assert len(moved) == len(names)
    assert all(map(torch.equal, switches, enabled(graph)))


def test_as_many_images_as_fit_are_taken(
    graph: fx.GraphModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More where the maps are smaller; of them everything is as if they had been there before."""
    graph = copy.deepcopy(graph)
    take_forms(graph, {layer.name: "int4" for layer in weighted_layers(graph)})
    whole = side_by_side.SideBySide(graph, images().split(16))
    monkeypatch.setattr(side_by_side, "_MOST_NUMBERS", 32 * 32 * (SIDE // 2) ** 2)
    some = side_by_side.SideBySide(graph, images().split(16))
    convolutions = in_graph(graph, aten.conv2d.default)
    taken = {}
    with torch.no_grad():
        monkeypatch.setattr(side_by_side, "_MOST_NUMBERS", 2**28)
        whole.take_more(next(iter(graph.graph.nodes)))
        monkeypatch.setattr(side_by_side, "_MOST_NUMBERS", 32 * 32 * (SIDE // 2) ** 2)
        some.take_more(next(iter(graph.graph.nodes)))
        for node in graph.graph.nodes:
            for both in (whole, some):
                if node in convolutions:
                    both.take_more(node)
                    taken[node] = len(both.batches)
                both.compute(node)
            if node in convolutions:
                for one, other in zip(whole.found[node], some.found[node], strict=True):
                    found = torch.cat(other)
                    assert torch.equal(torch.cat(one)[: len(found)], found)
            for both in (whole, some):
                both.forget_before(node)
    assert [taken[conv] for conv in convolutions] == [2, 2, 2, 4]
    monkeypatch.setattr(side_by_side, "_MOST_NUMBERS", 1)
    one = side_by_side.SideBySide(graph, images().split(16))
    one.take_more(next(iter(graph.graph.nodes)))
    assert len(one.batches) == 1, "that one is always there"


def test_weights_of_a_rounded_graph_are_rounded_to_themselves(graph: fx.GraphModule) -> None:
    graph = copy.deepcopy(graph)
    take_forms(graph, {layer.name: "int4" for layer in weighted_layers(graph)})
    round_all_adaptively(graph, lambda: images().split(16))
    only_round(graph)
    norm = in_graph(graph, aten.batch_norm.default)[0]
    factor = attribute(graph, norm.args[1]) / (attribute(graph, norm.args[4]) + 1e-5).sqrt()
    for layer, module in few_bit_layers(graph):
        given = (factor,) if layer.name == "stem.0" else ()
        rounded = module(layer.weight, *given)
        assert torch.allclose(rounded, layer.weight, rtol=2e-3, atol=1e-6), layer.name
