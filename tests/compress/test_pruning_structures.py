"""Every way in which channels are tied is followed exactly, or its layers are named and stay."""

import functools
import random
import re

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning import costs
from pipeline.compress.pruning.followed import Followed, followed
from pipeline.compress.pruning.importance import scores
from pipeline.compress.pruning.kept import Kept, by_reason
from pipeline.compress.pruning.prune import goal_of, plan_of, prune_to, take_shapes
from pipeline.compress.pruning.removal import mask, masked_difference, remove
from pipeline.compress.pruning.widths import choose
from pipeline.networks.count import count
from pipeline.networks.family import Family
from pipeline.recipe.input_shape import square
from tests.making import structures
from tests.making.networks import randomise, same_state
from tests.making.pruning import STORED, TOLERANCE, config, random_mask
from tests.making.structures import SIDE, STRUCTURE

SHAPE = square(SIDE)
KEPT = {
    structures.Unequal: {"stem.0": r"two\.0 has 12 of 16 of them, no equal part"},
    structures.Shuffled: {
        "stem.0": r"ties 16 channels to two\.0, which makes 8",
        "two.0": r"ties 8 channels to stem\.0, which makes 16",
    },
    structures.Grouped: dict.fromkeys(
        ("left.0", "right.0"), r"beside\.0 has them beside others, .* in 2 groups"
    ),
    structures.Looked: {"places": r"ties 1 channels to stem\.0, which makes 16"},
    structures.Mixing: dict.fromkeys(("stem.0", "last.0"), r"does not know .* behind .*Softmax"),
}
"""Layers that stay, and why; nothing stays of the other networks."""

NETWORKS = pytest.mark.parametrize("kind", structures.EVERY, ids=lambda kind: kind.__name__)


def network(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().eval()
    randomise(model, seed)
    return model


@functools.cache
def channels(kind: type[nn.Module]) -> Followed:
    return followed(network(kind), SHAPE, STRUCTURE)


@NETWORKS
def test_what_is_not_followed_is_named_with_the_reason(kind: type[nn.Module]) -> None:
    found, wanted = channels(kind), KEPT.get(kind, {})
    assert [one.layer for one in found.kept] == list(wanted)
    for one in found.kept:
        assert one.channels == network(kind).get_submodule(one.layer).weight.shape[0]
        assert re.search(wanted[one.layer], one.reason)


@NETWORKS
def test_every_layer_makes_channels_of_a_group_or_stays(kind: type[nn.Module]) -> None:
    model, found = network(kind), channels(kind)
    made = {layer for group in found.groups for layer in (*group.makers, *group.layers("follows"))}
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert made & layers | {one.layer for one in found.kept} == layers - {"fc"}


@NETWORKS
@pytest.mark.parametrize("seed", range(3))
def test_removed_is_masked_and_costs_are_counted(kind: type[nn.Module], seed: int) -> None:
    model, groups = network(kind, seed), channels(kind).groups
    removed = random_mask(groups, random.Random(seed))
    pruned = remove(model, groups, removed)
    assert masked_difference(model, pruned, groups, removed, SHAPE) <= TOLERANCE
    counts, after = count(model, SHAPE), count(pruned, SHAPE)
    shapes = costs.layer_shapes(groups, counts)
    widths = {g.name: g.channels - len(removed[g.name]) for g in groups}
    assert costs.macs(shapes).of(widths) == after.macs < counts.macs
    assert costs.params(shapes, groups, counts).of(widths) == after.params < counts.params


@NETWORKS
def test_shapes_are_taken_from_saved_weights(kind: type[nn.Module]) -> None:
    model, groups = network(kind), channels(kind).groups
    pruned = remove(model, groups, random_mask(groups, random.Random(0)))
    fresh = network(kind, seed=1)
    take_shapes(fresh, pruned.state_dict())
    assert same_state(fresh, pruned)
    assert repr(fresh) == repr(pruned)
    images = torch.randn(SHAPE.batch(2))
    with torch.no_grad():
        assert torch.equal(fresh(images), pruned(images))
    assert followed(pruned, SHAPE, STRUCTURE, channels(kind).kept).groups


@NETWORKS
@pytest.mark.parametrize("criterion", ["l1", "bn_scale", "taylor", "fisher"])
def test_every_channel_is_judged(kind: type[nn.Module], criterion: str) -> None:
    found = followed(network(kind), SHAPE, STRUCTURE, channels(kind).kept)
    images = torch.randn(SHAPE.batch(2))
    judged = scores(found, criterion, lambda: [(images, lambda out: out.square().sum())])
    for group in found.groups:
        values = judged[group.name]
        assert len(values) == group.channels // group.parts
        assert torch.isfinite(values).all()
        if criterion in ("l1", "bn_scale"):  # shares of the mean, whatever they are judged by
            assert values.mean() == pytest.approx(1.0, rel=1e-5)


def test_channels_without_factors_are_judged_by_the_norm_of_their_weights() -> None:
    found = channels(structures.Concat)
    by_norm, by_factor = (scores(found, name, lambda: ()) for name in ("l1", "bn_scale"))
    assert torch.equal(by_norm["right"], by_factor["right"])
    assert not torch.equal(by_norm["left.0"], by_factor["left.0"])


@NETWORKS
@pytest.mark.parametrize("key", ["macs", "params", "size_mb"])
def test_a_target_is_reached(kind: type[nn.Module], key: str) -> None:
    model = network(kind)
    family = Family(build=lambda *_: model, structure=lambda _: STRUCTURE)
    whole = goal_of(family, model, SHAPE, config(**{key: 1.0}, round_to=1), STORED).whole
    asked = 0.7 if key != "size_mb" else 0.95 * whole
    settings = config(**{key: asked}, round_to=1)
    goal = goal_of(family, model, SHAPE, settings, STORED)
    plan = plan_of(model, SHAPE, STRUCTURE, goal, settings, lambda: ())
    widths = choose(plan, goal.limit, "network")
    assert 0.6 * goal.limit <= goal.cost.of(widths) <= goal.limit
    assert prune_to(model, SHAPE, plan, widths).difference <= TOLERANCE


def test_a_target_out_of_reach_names_what_cannot_be_pruned() -> None:
    model = network(structures.Unequal)
    family = Family(build=lambda *_: model, structure=lambda _: STRUCTURE)
    settings = config(macs=0.01)
    goal = goal_of(family, model, SHAPE, settings, STORED)
    message = r"at their floor, .*Layers that cannot be pruned: stem\.0: two\.0 has 12 of 16"
    with pytest.raises(InputError, match=message):
        plan_of(model, SHAPE, STRUCTURE, goal, settings, lambda: ())


def test_a_network_of_which_nothing_can_go_is_refused() -> None:
    class Fixed(structures.Unequal):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            return super().features(x).view(-1, 16, SIDE, SIDE)[:, :16].softmax(1)

    with pytest.raises(InputError, match=r"no channel .* can be removed \(.*stem\.0.*prune: null"):
        followed(Fixed().eval(), SHAPE, STRUCTURE)


def test_a_mask_is_of_what_reads_and_nothing_else() -> None:
    model, groups = network(structures.Concat), channels(structures.Concat).groups
    masked = mask(model, groups, {"right": [0]})
    changed = {
        name
        for (name, one), two in zip(model.named_parameters(), masked.parameters(), strict=True)
        if not torch.equal(one, two)
    }
    assert changed == {"last.0.weight"}
    weight = masked.get_parameter("last.0.weight")
    assert (weight[:, 16] == 0).all()  # behind the sixteen of the left branch
    assert (weight[:, 15] != 0).any()
    assert (weight[:, 17] != 0).any()


def test_layers_of_one_reason_are_told_together() -> None:
    kept = [
        Kept(layer=f"stage{i}.conv", channels=8, reason=f"ties {i} channels to a") for i in range(5)
    ]
    kept.append(Kept(layer="b", channels=2, reason="something else"))
    assert by_reason(kept) == [
        "stage0.conv, stage1.conv, stage2.conv and 2 more: ties 0 channels to a",
        "b: something else",
    ]
