"""What forms cost: the divergence that is predicted, beside the one that is measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from pipeline.compress.quantization import qat, sensitivity
from pipeline.compress.quantization.few_bits import WeightedLayer, rounding_of, weighted_layers
from pipeline.compress.quantization.sensitivity import costs, divergence
from pipeline.recipe.input_shape import square
from pipeline.recipe.task import Link
from pipeline.recipe.weight_forms import WeightForm

IMAGES = 256


class Net(nn.Module):
    """Two convolutions, the second with a batch normalisation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv2 = nn.Conv2d(8, 16, 3, 2, 1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv2(torch.relu(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def graph_of(network: nn.Module) -> fx.GraphModule:
    graph = qat.prepare(network, square(16))
    qat.without_rounding(graph)
    return graph


def images(seed: int = 0) -> Tensor:
    return torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def moves_of(layers: list[WeightedLayer], form: WeightForm) -> dict[str, dict[WeightForm, Tensor]]:
    found: dict[str, dict[WeightForm, Tensor]] = {}
    for layer in layers:
        module = rounding_of(layer.weight, form, layer.module)
        module.enable_fake_quant(True)
        with torch.no_grad():
            found[layer.name] = {form: module(layer.weight) - layer.weight}
    return found


def measured(
    graph: fx.GraphModule, layers: list[WeightedLayer], moves: dict[str, Tensor], link: Link
) -> float:
    """By how much the answers move with these added to the weights."""
    with torch.no_grad():
        before = graph(images())
        for layer in layers:
            if layer.name in moves:
                layer.weight.add_(moves[layer.name])
        after = graph(images())
        for layer in layers:
            if layer.name in moves:
                layer.weight.sub_(moves[layer.name])
    return divergence(before, after, link)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_what_is_predicted_of_each_layer_and_of_all_is_what_is_measured(link: Link) -> None:
    graph = graph_of(Net())
    layers = weighted_layers(graph)
    assert [layer.name for layer in layers] == ["conv1", "conv2", "fc"]
    moves = moves_of(layers, "int4")
    predicted = costs(graph, layers, moves, lambda: images().split(64), link)
    several = [
        costs(graph, layers, moves, lambda: images().split(64), link, seed) for seed in range(8)
    ]
    for layer in layers:
        found = measured(graph, layers, {layer.name: moves[layer.name]["int4"]}, link)
        mean = sum(one[layer.name]["int4"] for one in several) / len(several)
        assert mean == pytest.approx(found, rel=0.25)
        assert predicted[layer.name]["int4"] == pytest.approx(found, rel=0.6)
    whole = measured(graph, layers, {name: move["int4"] for name, move in moves.items()}, link)
    assert sum(one["int4"] for one in predicted.values()) == pytest.approx(whole, rel=0.6)


def test_costs_grow_with_the_square_of_what_is_moved() -> None:
    graph = graph_of(Net())
    layers = weighted_layers(graph)
    moves = moves_of(layers, "int4")
    twice: dict[str, dict[WeightForm, Tensor]] = {
        name: {**forms, "palette16": 2 * forms["int4"]} for name, forms in moves.items()
    }
    found = costs(graph, layers, twice, lambda: images().split(64), "softmax")
    for forms in found.values():
        assert forms["palette16"] == pytest.approx(4 * forms["int4"], rel=1e-5)


def test_it_does_not_depend_on_how_images_are_batched_but_on_the_first_ones() -> None:
    """Answers are drawn anew where batches are others; their mean is the same to a tenth."""
    graph = graph_of(Net())
    layers = weighted_layers(graph)
    moves = moves_of(layers, "int4")
    whole = costs(graph, layers, moves, lambda: [images()], "softmax")
    more = costs(graph, layers, moves, lambda: [images(), images(1)], "softmax")
    assert more == whole, "of more images the first are looked at"
    some = costs(graph, layers, moves, lambda: images().split(100), "softmax")
    for name, forms in some.items():
        assert forms["int4"] == pytest.approx(whole[name]["int4"], rel=0.5)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_the_divergence_is_torchs(link: Link) -> None:
    before, after = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    if link == "softmax":
        wanted = kl_divergence(Categorical(logits=before), Categorical(logits=after)).mean()
    else:
        each = kl_divergence(Bernoulli(logits=before), Bernoulli(logits=after))
        wanted = each.sum(1).mean()
    assert divergence(before, after, link) == pytest.approx(float(wanted), rel=1e-9)
    assert divergence(before, before, link) == 0
    far = 1000 * before.float()
    assert torch.isfinite(torch.tensor(divergence(far, -far, link)))


def test_several_convolutions_of_one_weight_are_one_layer() -> None:
    """Its cost is that of all places where it is read."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.conv = nn.Conv2d(8, 8, 3, 1, 1)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(torch.relu(self.conv(torch.relu(self.stem(x)))))
            return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]

    graph = graph_of(Twice())
    layers = {layer.name: layer for layer in weighted_layers(graph)}
    assert len(layers["conv"].convolutions) == 2
    assert not layers["conv"].takes_fewer
    assert layers["stem"].takes_fewer
    move: dict[str, dict[WeightForm, Tensor]] = {
        name: {"int8": 0.02 * torch.randn_like(layer.weight)} for name, layer in layers.items()
    }
    found = costs(graph, list(layers.values()), move, lambda: [images()], "softmax")
    assert set(found) == set(layers)
    assert found["conv"]["int8"] > 0


def test_memory_holds_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(Net())
    sizes = []
    parts = sensitivity._parts

    def seen(*arguments: object) -> object:
        for part in parts(*arguments):  # type: ignore[arg-type]
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(sensitivity, "_parts", seen)
    monkeypatch.setattr(sensitivity, "_MOST_NUMBERS", 100_000)
    layers = weighted_layers(graph)
    costs(graph, layers, moves_of(layers, "int4"), lambda: [images()], "softmax")
    assert sum(sizes) == IMAGES
    assert max(sizes) < 64


def test_maps_cost_what_all_their_places_do() -> None:
    before, after = torch.randn(2, 6, 5, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    places = (one.movedim(1, -1) for one in (before, after))
    first, second = (Categorical(logits=one) for one in places)
    wanted = kl_divergence(first, second).flatten(1).sum(1).mean()
    assert divergence(before, after, "softmax") == pytest.approx(float(wanted), rel=1e-9)

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.stem(x)))  # type: ignore[no-any-return]

    graph = graph_of(Maps())
    layers = weighted_layers(graph)
    found = costs(graph, layers, moves_of(layers, "int4"), lambda: [images()], "softmax")
    assert all(cost["int4"] > 0 for cost in found.values())
