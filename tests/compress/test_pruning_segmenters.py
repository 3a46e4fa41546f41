"""Channels go from backbones, necks and heads, and the rest computes what it did without them."""

from __future__ import annotations

import random

import pytest

from pipeline.compress.pruning.followed import followed
from pipeline.compress.pruning.prune import goal_of, plan_of, prune_to
from pipeline.compress.pruning.removal import masked_difference, remove
from pipeline.compress.pruning.widths import choose
from pipeline.networks.count import count
from pipeline.networks.segmenter.family import FAMILY
from tests.making.pruning import STORED, TOLERANCE, random_mask
from tests.making.pruning import config as pruning
from tests.making.segmenters import NETWORKS, config, segmenter


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_but_the_classifier_is_followed_and_removed_exactly(name: str) -> None:
    asked = config(**NETWORKS[name])
    model = FAMILY.prunable(segmenter(asked))
    found = followed(model, asked.input_shape, FAMILY.structure(model))
    assert found.kept == ()
    assert any(group.stage == "decoder" for group in found.groups)
    removed = random_mask(found.groups, random.Random(0))
    pruned = remove(model, found.groups, removed)
    difference = masked_difference(model, pruned, found.groups, removed, asked.input_shape)
    assert difference <= TOLERANCE


def test_half_of_the_work_goes() -> None:
    asked = config(**NETWORKS["deeplabv3plus"] | {"decoder_channels": 16})
    model = FAMILY.prunable(segmenter(asked))
    shape, structure = asked.input_shape, FAMILY.structure(model)
    settings = pruning(macs=0.5, criterion="l1")
    goal = goal_of(FAMILY, model, shape, settings, STORED)
    plan = plan_of(model, shape, structure, goal, settings, lambda: ())
    widths = choose(plan, goal.limit, settings.scope)
    pruned = prune_to(model, shape, plan, widths)
    before, after = (count(one, shape).macs for one in (model, pruned.model))
    assert 0.4 * before < after <= 0.5 * before
    assert pruned.difference <= TOLERANCE
