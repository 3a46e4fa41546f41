"""What each criterion says of a channel."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pipeline.compress.pruning.followed import followed, groups_of
from pipeline.compress.pruning.importance import NEED_IMAGES, JudgedImages, Scores, scores
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.input_shape import square
from tests.making.networks import CLASSES, ONE_BLOCK, SIDE, images, same_state, small, structure

CRITERIA = ["l1", "l2", "bn_scale", "taylor", "fisher"]
NAME = "layer2.0.branches.0.0"


def network(**overrides: object) -> ResNeSt:
    return branch_form(small(layers=ONE_BLOCK, **overrides))


def labelled() -> Iterator[tuple[Tensor, Tensor]]:
    for seed in range(2):
        yield images(4, seed), torch.arange(4) % CLASSES


def judged() -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    for x, labels in labelled():
        yield x, partial(torch.nn.functional.cross_entropy, target=labels)


def no_images() -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    raise AssertionError("the criterion looks at no images")


def judged_by(model: nn.Module, criterion: str, with_images: JudgedImages) -> Scores:
    return scores(followed(model, square(SIDE), structure(model)), criterion, with_images)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_channel_has_a_score_and_the_weak_ones_the_lowest(criterion: str) -> None:
    model, weak = network(), [1, 4, 5]
    for layer in (model.get_submodule(NAME), model.get_submodule("layer2.0.branches.0.1")):
        layer.weight.data[weak] *= 1e-4
        if layer.bias is not None:
            layer.bias.data[weak] = 0
    model.get_submodule("layer2.0.branches.0.4").weight.data[:, weak] *= 1e-4
    before = copy.deepcopy(model)
    found = judged_by(model, criterion, judged if criterion in NEED_IMAGES else no_images)
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    sizes = {
        group.name: group.channels // group.parts
        for group in groups_of(model, square(SIDE), structure(model))
    }
    assert {name: len(values) for name, values in found.items()} == sizes
    assert all(torch.isfinite(values).all() and (values >= 0).all() for values in found.values())
    # Channels that the ReLU silences for all images have no gradient and matter even less.
    assert found[NAME][weak].max() < 1e-3 * found[NAME].max()
    assert (found[NAME] > found[NAME][weak].max()).sum() >= 3


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_repeat(criterion: str) -> None:
    one, two = (judged_by(network(), criterion, judged) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_cardinal_groups_share_their_scores(criterion: str) -> None:
    model = network(cardinality=2)
    found = judged_by(model, criterion, judged)
    for group in groups_of(model, square(SIDE), structure(model)):
        assert len(found[group.name]) * group.parts == group.channels


def of_makers_and_readers(model: ResNeSt, values: dict[str, Tensor]) -> Tensor:
    """Sum over what makes and what reads the channels of the first branch's inner group."""
    made = values[f"{NAME}.weight"].flatten(1).sum(1)
    read = values["layer2.0.branches.0.4.weight"].transpose(0, 1).flatten(1).sum(1)
    return made + read


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradients_are_averaged_over_all_batches(criterion: str) -> None:
    """Against the formula, by hand."""
    model = network()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for x, labels in labelled():
        loss = nn.functional.cross_entropy(model(x), labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += (gradient.square() if criterion == "fisher" else gradient) / 2
    if criterion == "taylor":
        values = {n: (parameters[n].detach() * total[n]).abs() for n in total}
    else:
        values = {n: parameters[n].detach().square() * total[n] for n in total}
    expected = of_makers_and_readers(model, values)
    if criterion == "fisher":  # torch-pruning counts the batch normalisation's factor too
        expected = expected + values["layer2.0.branches.0.1.weight"]
    found = judged_by(model, criterion, judged)[NAME]
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-12)


def test_norms_are_shares_of_their_groups_mean() -> None:
    for criterion in ("l1", "l2", "bn_scale"):
        found = judged_by(network(), criterion, no_images)
        for values in found.values():
            assert values.mean() == pytest.approx(1.0, rel=1e-5)
