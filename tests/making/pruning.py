"""Prunings of narrow networks, without the training that follows them."""

from __future__ import annotations

import random
from typing import Any

from pipeline.compress.pruning.groups import STEM, Cut, Group
from pipeline.compress.pruning.prune import Goal, Pruned, goal_of, plan_of, prune_to
from pipeline.compress.pruning.widths import choose
from pipeline.formats.formats import FORMATS
from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.compression import PruneConfig
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import TrainConfig
from tests.making.networks import SIDE, structure

STORED = FORMATS["tflite"].bytes["int8"]
FINETUNE = TrainConfig(epochs=1, batch_size=2, learning_rate=0.1)
TOLERANCE = 1e-5


def config(**fields: Any) -> PruneConfig:
    return PruneConfig(finetune=FINETUNE, **{"round_to": 2} | fields)


def pruned_by(model: ResNeSt, settings: PruneConfig) -> tuple[Pruned, Goal]:
    goal = goal_of(FAMILY, model, square(SIDE), settings, STORED)
    plan = plan_of(model, square(SIDE), structure(model), goal, settings, lambda: ())
    return prune_to(model, square(SIDE), plan, choose(plan, goal.limit, settings.scope)), goal


def random_mask(groups: tuple[Group, ...], chance: random.Random) -> dict[str, list[int]]:
    """Some channels of every group, one at least and not all; the same of every cardinal group."""
    removed = {}
    for group in groups:
        size = group.channels // group.parts
        gone = chance.sample(range(size), chance.randrange(1, size))
        removed[group.name] = sorted(p * size + i for p in range(group.parts) for i in gone)
    return removed


def plain_group(name: str, channels: int, parts: int = 1, stage: str = STEM) -> Group:
    """What one convolution makes, with its batch normalisation."""
    every = tuple(range(channels))
    cuts = (
        Cut(layer=name, kind="makes", positions=every, channels=every),
        Cut(layer=f"{name}.bn", kind="norms", positions=every, channels=every),
    )
    return Group(name=name, channels=channels, parts=parts, cuts=cuts, stage=stage)
