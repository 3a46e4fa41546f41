"""Pruning reaches what was asked, is checked against the masked original, and can be saved."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning import prune
from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.prune import Pruned, goal_of, plan_of, prune_to, take_shapes
from pipeline.compress.pruning.removal import masked_difference
from pipeline.compress.pruning.widths import choose
from pipeline.networks.count import count
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.input_shape import square
from tests.making.networks import (
    ONE_BLOCK,
    SHALLOW,
    SIDE,
    VARIANTS,
    images,
    relative_difference,
    same_state,
    small,
    structure,
)
from tests.making.pruning import STORED, config, pruned_by


def network(variant: str = "plain", seed: int = 0) -> ResNeSt:
    """Twice as wide as other tests' networks: in a narrow one every step is a large one."""
    shape = {"width_multiplier": 0.5, "layers": SHALLOW if variant == "plain" else ONE_BLOCK}
    return branch_form(small(seed=seed, **VARIANTS[variant] | shape))


@functools.cache
def branched(variant: str = "plain") -> ResNeSt:
    return network(variant)


@functools.cache
def pruned(variant: str = "plain") -> Pruned:
    return pruned_by(branched(variant), config(macs=0.5))[0]


def widths(model: nn.Module) -> dict[str, int]:
    return {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block_reaches_the_share(variant: str) -> None:
    original, result = branched(variant), pruned(variant)
    assert (
        0.48 <= count(result.model, square(SIDE)).macs / count(original, square(SIDE)).macs <= 0.5
    )
    assert result.difference <= 1e-5
    groups = groups_of(original, square(SIDE), structure(original))
    assert masked_difference(original, result.model, groups, result.removed, square(SIDE)) <= 1e-5
    before, after = widths(original), widths(result.model)
    assert all(width % 2 == 0 and 0 < width <= before[n] for n, width in after.items())


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_share_of_the_parameters(share: float) -> None:
    result, _ = pruned_by(branched(), config(params=share))
    found = count(result.model, square(SIDE)).params / count(branched(), square(SIDE)).params
    assert share - 0.02 <= found <= share


def test_a_size_in_megabytes() -> None:
    """The estimate is compared with real files in the end-to-end tests."""
    result, goal = pruned_by(branched(), config(size_mb=0.12))
    assert goal.whole > 0.15
    groups = groups_of(result.model, square(SIDE), structure(result.model))
    after = goal.cost.of({group.name: group.channels for group in groups})
    assert 0.115 <= after <= 0.12
    assert not goal.share


@pytest.mark.parametrize("variant", ["plain", "basic"])
def test_the_pruned_network_has_a_deploy_form(variant: str) -> None:
    model, x = pruned(variant).model, images(2)
    with torch.no_grad():
        assert relative_difference(deploy_form(model)(x), model(x)) <= 1e-5


def test_the_original_is_untouched_and_pruning_repeats() -> None:
    original = network("basic")
    one, two = (pruned_by(original, config(macs=0.5))[0], pruned("basic"))
    assert same_state(original, network("basic"))
    assert one.removed == two.removed
    assert same_state(one.model, two.model)


def test_share_of_one_is_the_identity() -> None:
    result, _ = pruned_by(branched(), config(macs=1.0))
    assert (result.removed, result.difference) == ({}, 0.0)
    assert result.model is not branched()
    assert same_state(result.model, branched())


def test_steps_lead_to_the_goal_by_equal_shares() -> None:
    goal = goal_of(FAMILY, branched(), square(SIDE), config(macs=0.25), STORED)
    limits = [goal.after(step, 2) / goal.whole for step in (1, 2)]
    assert limits == pytest.approx([0.5, 0.25])
    model = branched()
    for step in (1, 2):
        plan = plan_of(model, square(SIDE), structure(model), goal, config(macs=0.25), lambda: ())
        model = prune_to(
            model, square(SIDE), plan, choose(plan, goal.after(step, 2), "layer")
        ).model
    assert 0.24 <= count(model, square(SIDE)).macs / count(branched(), square(SIDE)).macs <= 0.25


@pytest.mark.parametrize("key", ["macs", "params", "size_mb"])
def test_a_goal_out_of_reach_gives_the_nearest_and_the_layers_at_their_floor(key: str) -> None:
    asked = 0.0001
    settings = config(**{key: asked, "round_to": 8})
    message = (
        rf"prune\.{key}: got 0\.0001; .* rounded to 8 reaches (0\.\d{{3}}) at the least; .*round_to"
        r".* Layers at their floor, with their channels: conv1\.0 \(8\), .* and \d+ more"
    )
    with pytest.raises(InputError, match=message) as caught:
        pruned_by(branched(), settings)
    least = float(str(caught.value).split("reaches ")[1][:5])
    assert least < 0.5
    result, goal = pruned_by(branched(), config(**{key: least, "round_to": 8}))
    after = {
        group.name: group.channels
        for group in groups_of(result.model, square(SIDE), structure(result.model))
    }
    reached = goal.cost.of(after) / (goal.whole if goal.share else 1)
    assert reached == pytest.approx(least, abs=0.001)


def test_a_difference_to_the_masked_network_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "masked_difference", lambda *_: 1e-3)
    with pytest.raises(RuntimeError, match=r"differs from the masked one by 1\.00e-03"):
        pruned_by(branched(), config(macs=0.5))


@pytest.mark.parametrize("cardinality", [1, 2])
def test_rounding_leaves_no_wide_layer_whole(cardinality: int) -> None:
    narrow = branch_form(small(layers=ONE_BLOCK, cardinality=cardinality))
    result, _ = pruned_by(narrow, config(macs=0.4, round_to=8))
    assert all(width % 8 == 0 for width in widths(result.model).values())


@pytest.mark.parametrize("variant", ["plain", "one_split", "basic_four_splits"])
def test_shapes_are_taken_from_saved_weights(variant: str) -> None:
    model = pruned(variant).model
    fresh = network(variant, seed=1)
    take_shapes(fresh, model.state_dict())
    assert same_state(fresh, model)
    assert widths(fresh) == widths(model)
    for name, module in model.named_modules():
        assert repr(module) == repr(fresh.get_submodule(name)), name
    x = images(2)
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


def test_taking_shapes_copies() -> None:
    state: dict[str, Any] = {k: v.clone() for k, v in pruned().model.state_dict().items()}
    fresh = network(seed=1)
    take_shapes(fresh, state)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    assert all(torch.equal(v, state[k]) for k, v in pruned().model.state_dict().items())


def test_weights_of_another_network_are_refused() -> None:
    state = pruned().model.state_dict()
    with pytest.raises(InputError, match=r"do not fit the network: layer2\.1\."):
        take_shapes(branch_form(small(layers=ONE_BLOCK)), state)
