"""Pruning reaches its target, and the equality test that guards it can fail."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.deploy import deploy_form
from pipeline.errors import InputError
from pipeline.models.branches import branch_form
from pipeline.models.count import count
from pipeline.models.resnest import ResNeSt
from pipeline.prune import Pruned, masked_difference, prune_to_macs, take_shapes
from tests.networks import ONE_BLOCK, SHALLOW, SIDE, VARIANTS, images, same_state, small
from tests.test_resnest import relative_difference

ROUND_TO = 2
TARGET = 0.5


def network(variant: str = "plain", seed: int = 0) -> ResNeSt:
    """Twice as wide as other tests' networks: in a narrow one every step is a large one."""
    shape = {"width_multiplier": 0.5, "layers": SHALLOW if variant == "plain" else ONE_BLOCK}
    return branch_form(small(seed=seed, **VARIANTS[variant] | shape))


@functools.cache
def branched(variant: str = "plain") -> ResNeSt:
    return network(variant)


@functools.cache
def pruned(variant: str = "plain") -> Pruned:
    return prune_to_macs(branched(variant), SIDE, TARGET, ROUND_TO)


def widths(model: nn.Module) -> dict[str, int]:
    return {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block_reaches_the_share(variant: str) -> None:
    original, result = branched(variant), pruned(variant)
    share = count(result.model, SIDE).macs / count(original, SIDE).macs
    assert result.macs_share == share
    assert TARGET - 0.12 <= share <= TARGET
    assert result.difference <= 1e-5
    assert masked_difference(original, result.model, result.removed, SIDE) <= 1e-5
    before, after = widths(original), widths(result.model)
    assert all(width % ROUND_TO == 0 and 0 < width <= before[n] for n, width in after.items())
    removed = {name: len(indices) for name, indices in result.removed.items()}
    norms = [n for n, m in original.named_modules() if isinstance(m, nn.BatchNorm2d)]
    for name in norms:
        left = result.model.get_submodule(name).num_features
        assert original.get_submodule(name).num_features - left == removed.get(name, 0), name


@pytest.mark.parametrize("variant", ["plain", "basic"])
def test_the_pruned_network_has_a_deploy_form(variant: str) -> None:
    model, x = pruned(variant).model, images(2)
    with torch.no_grad():
        assert relative_difference(deploy_form(model)(x), model(x)) <= 1e-5


def test_the_original_is_untouched_and_pruning_repeats() -> None:
    original = network("basic")
    before = copy.deepcopy(original)
    one, two = (prune_to_macs(original, SIDE, TARGET, ROUND_TO), pruned("basic"))
    assert same_state(original, before)
    assert one.removed == two.removed
    assert same_state(one.model, two.model)


def test_a_mask_without_one_channel_is_found() -> None:
    original, result = branched(), pruned()
    for name, indices in result.removed.items():
        bias = original.get_submodule(name).bias.tolist()
        # The ReLU may silence a channel of negative bias; then it makes no difference.
        seen = max(indices, key=lambda index: bias[index])
        wrong = result.removed | {name: [index for index in indices if index != seen]}
        assert masked_difference(original, result.model, wrong, SIDE) > 1e-4, name


def test_a_mask_with_another_channel_is_found() -> None:
    original, result = branched(), pruned()
    name, indices = next(iter(result.removed.items()))
    kept = min(set(range(len(indices) + 1)) - set(indices))
    wrong = result.removed | {name: [*indices[1:], kept]}
    assert masked_difference(original, result.model, wrong, SIDE) > 1e-4


def test_the_weakest_channels_go() -> None:
    """A channel of small weights everywhere is removed before the others."""
    original = branch_form(small(layers=ONE_BLOCK))
    block = original.stages()[1][0]
    weak = [1, 4, 5]
    for branch in block.branches:
        for layer in (branch[0], branch[1]):
            layer.weight.data[weak] *= 1e-4
        branch[4].weight.data[:, weak] *= 1e-4
    result = prune_to_macs(original, SIDE, 0.7, 1)
    assert set(weak) <= set(result.removed["layer2.0.branches.0.1"])


def test_share_of_one_is_the_identity() -> None:
    result = prune_to_macs(branched(), SIDE, 1.0, 8)
    assert (result.macs_share, result.removed, result.difference) == (1.0, {}, 0.0)
    assert result.model is not branched()
    assert same_state(result.model, branched())


def test_a_share_out_of_reach_gives_the_nearest() -> None:
    message = r"prune\.macs: got 0\.01; .* rounded to 8 reaches (0\.\d{3}) at the least; .*round_to"
    with pytest.raises(InputError, match=message) as caught:
        prune_to_macs(branched(), SIDE, 0.01, 8)
    least = float(str(caught.value).split("reaches ")[1][:5])
    assert least < 0.5
    result = prune_to_macs(branched(), SIDE, least + 0.001, 8)
    assert result.macs_share == pytest.approx(least, abs=0.001)


@pytest.mark.parametrize("cardinality", [1, 2])
def test_rounding_never_leaves_a_wide_layer_whole(cardinality: int) -> None:
    """torch-pruning skips a layer that rounding would empty; ever less would be pruned."""
    narrow = branch_form(small(layers=ONE_BLOCK, cardinality=cardinality))
    least = widths(prune_to_macs(narrow, SIDE, 0.4, 8).model)
    whole = widths(narrow)
    # The stem's first two have 8 channels, fewer cannot be.
    assert {name for name in whole if whole[name] == least[name]} <= {"conv1.0", "conv1.3"}
    assert all(width % 8 == 0 for width in least.values())


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
