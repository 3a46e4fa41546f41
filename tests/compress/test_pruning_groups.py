"""Every layer of every ResNeSt can be pruned, and the result is the masked original."""

import functools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.groups import Group
from pipeline.compress.pruning.removal import check_removed, mask, masked_difference, remove
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.network import NAMED, ResNeSt
from pipeline.recipe.input_shape import square
from tests.making.networks import ONE_BLOCK, SHALLOW, SIDE, VARIANTS, same_state, small, structure
from tests.making.pruning import TOLERANCE, random_mask

pytestmark = pytest.mark.slow


@functools.cache
def branched(variant: str) -> ResNeSt:
    return branch_form(small(**VARIANTS[variant]))


@functools.cache
def groups(variant: str) -> tuple[Group, ...]:
    return groups_of(branched(variant), square(SIDE), structure(branched(variant)))


DEEPEST = ("resnest101", "resnest200", "resnest269")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.networks] if name in DEEPEST else []) for name in NAMED],
)
def test_random_masks_on_every_group_of_every_named_network(name: str) -> None:
    """At full depth, a quarter of the width, 64 x 64: every kind of layer and tie is there."""
    original = branch_form(small(name, layers=NAMED[name].layers))
    found = groups_of(original, square(64), structure(original))
    removed = random_mask(found, random.Random(name))
    assert set(removed) == {group.name for group in found}
    pruned = remove(original, found, removed)
    assert masked_difference(original, pruned, found, removed, square(64)) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_random_masks_on_every_kind_of_block(variant: str, seed: int) -> None:
    removed = random_mask(groups(variant), random.Random(seed))
    pruned = remove(branched(variant), groups(variant), removed)
    difference = masked_difference(
        branched(variant), pruned, groups(variant), removed, square(SIDE)
    )
    assert difference <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_convolution_makes_and_reads_the_channels_of_one_group(variant: str) -> None:
    model = branched(variant)
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    makers = [name for group in groups(variant) for name in group.makers]
    readers = [name for group in groups(variant) for name in group.readers]
    assert sorted(makers) == sorted(convs)
    assert sorted(readers) == sorted({*convs, "fc"} - {"conv1.0"})
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(name for group in groups(variant) for name in group.norms) == sorted(norms)
    for group in groups(variant):
        assert group.norms
        widths = {model.get_submodule(maker).out_channels for maker in group.makers}
        assert widths == {group.channels}


def test_the_radix_halves_and_the_residual_stream_are_tied() -> None:
    by_name = {group.name: group for group in groups("plain")}
    split = by_name["layer2.0.branches.0.4"]
    assert {"layer2.0.branches.1.4", "layer2.0.fc2.0", "layer2.0.fc2.1"} <= set(split.makers)
    assert set(split.readers) == {"layer2.0.fc1", "layer2.0.conv3"}
    stream = by_name["layer2.0.conv3"]
    assert {"layer2.0.downsample.1"} <= set(stream.makers)
    assert set(stream.readers) == {
        *("layer3.0.branches.0.0", "layer3.0.branches.1.0", "layer3.0.downsample.1")
    }
    assert by_name["layer2.0.branches.0.0"].makers == ("layer2.0.branches.0.0",)
    deeper = branch_form(small(layers=SHALLOW))
    stream = next(
        g for g in groups_of(deeper, square(SIDE), structure(deeper)) if g.name == "layer2.0.conv3"
    )
    assert stream.makers == ("layer2.0.conv3", "layer2.0.downsample.1", "layer2.1.conv3")
    assert {"layer2.1.branches.0.0", "layer2.1.branches.1.0", "fc"} == set(stream.readers)


def test_removing_changes_nothing_but_the_copy() -> None:
    model, before = branched("basic"), branch_form(small(**VARIANTS["basic"]))
    removed = random_mask(groups("basic"), random.Random(0))
    narrow = remove(model, groups("basic"), removed)
    mask(model, groups("basic"), removed)
    assert same_state(model, before)
    assert same_state(remove(model, groups("basic"), {}), model)
    for group in groups("basic"):
        left = group.channels - len(removed[group.name])
        assert {narrow.get_submodule(m).out_channels for m in group.makers} == {left}


def test_a_mask_without_one_channel_is_found() -> None:
    """Except where no image of the comparison wakes that channel."""
    original, chance = branched("plain"), random.Random(3)
    removed = random_mask(groups("plain"), chance)
    found = []
    for group in groups("plain"):
        gone = removed[group.name]
        pruned = remove(original, groups("plain"), {group.name: gone})
        biases = torch.stack([original.get_submodule(n).bias for n in group.norms]).amax(0).tolist()
        seen = max(gone, key=lambda index: biases[index])
        wrong = {group.name: [i for i in gone if i != seen]}
        found.append(
            masked_difference(original, pruned, groups("plain"), wrong, square(SIDE)) > TOLERANCE
        )
        whole = masked_difference(original, pruned, groups("plain"), {}, square(SIDE))
        assert whole > TOLERANCE, group.name
    assert sum(found) >= 0.8 * len(found)


def test_a_mask_with_another_channel_is_found() -> None:
    original = branched("plain")
    name = "layer2.0.conv3"
    pruned = remove(original, groups("plain"), {name: [0, 1]})
    assert (
        masked_difference(original, pruned, groups("plain"), {name: [0, 1]}, square(SIDE))
        <= TOLERANCE
    )
    assert (
        masked_difference(original, pruned, groups("plain"), {name: [0, 2]}, square(SIDE))
        > TOLERANCE
    )


@pytest.mark.parametrize(
    ("name", "indices", "message"),
    [
        ("layer2.0.nothing", [0], r"layer2\.0\.nothing makes no channels of its own; groups are"),
        ("layer2.0.conv3", [-1], r"got channels \[-1\]; give each of 0 to 127 once"),
        ("layer2.0.conv3", [128], r"got channels \[128\]; give each of 0 to 127 once"),
        ("layer2.0.conv3", [4, 4], r"got channels \[4, 4\]; give each"),
        ("layer2.0.conv3", range(128), r"layer2\.0\.conv3 would have no channel left; keep"),
        ("layer2.0.branches.0.4", [0], r"2 cardinal groups of \d+ channels, and every one must"),
        ("layer2.0.branches.0.4", [0, 1], r"2 cardinal groups of \d+ channels, and every one must"),
    ],
)
def test_masks_that_do_not_fit_are_refused(name: str, indices: list[int], message: str) -> None:
    model = branch_form(small(cardinality=2, layers=ONE_BLOCK))
    found = groups_of(model, square(SIDE), structure(model))
    with pytest.raises(InputError, match=message):
        remove(model, found, {name: list(indices)})
    with pytest.raises(InputError, match=message):
        check_removed(found, {name: list(indices)})
