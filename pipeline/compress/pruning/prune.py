"""Channel pruning of a network to a target, checked against the masked original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError, following
from pipeline.compress.pruning import costs, sizes
from pipeline.compress.pruning.costs import Cost
from pipeline.compress.pruning.groups import Group, Removed, groups_of, masked_difference, remove
from pipeline.compress.pruning.importance import JudgedImages, scores
from pipeline.compress.pruning.stored import Bytes
from pipeline.compress.pruning.widths import Plan, weakest
from pipeline.networks.count import count
from pipeline.networks.family import AnyFamily, Structure
from pipeline.recipe.compression import PruneConfig, PruneTarget
from pipeline.recipe.input_shape import InputShape

EQUALITY_TOLERANCE = 1e-4
"""Largest difference to the masked original, relative to its largest output."""

_LISTED = 6


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a pruning is to reach.

    Attributes:
        key: of the recipe, such as `macs`.
        cost: what is to become smaller, by widths.
        whole: the cost before anything is removed.
        limit: the most it may cost after, in the unit of the cost.
        asked: as the recipe has it.
        share: whether that is a share of the whole, and not in the unit of the cost.
    """

    key: PruneTarget
    cost: Cost
    whole: float
    limit: float
    asked: float
    share: bool

    def after(self, step: int, steps: int) -> float:
        """The limit after one of several steps; each removes the same share of what is left."""
        if self.limit >= self.whole:
            return self.limit
        return float(self.whole * (self.limit / self.whole) ** (step / steps))


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A pruned network.

    Attributes:
        model: the network, in prunable form and evaluation mode.
        removed: channels that went, by group.
        difference: to the original with those channels zeroed, relative to its largest output.
    """

    model: nn.Module
    removed: Removed
    difference: float


def goal_of(
    family: AnyFamily, model: nn.Module, shape: InputShape, config: PruneConfig, stored: Bytes
) -> Goal:
    """The goal of a recipe that asks for MACs, parameters or bytes.

    Args:
        family: of the network.
        model: in prunable form, before anything is removed.
        shape: of an image.
        config: the recipe's `prune`, not with a latency.
        stored: bytes that a file of the target's format and precision holds.
    """
    groups = groups_of(model, shape, family.structure(model))
    counts = count(model, shape)
    shapes = costs.layer_shapes(groups, counts)
    if config.macs is not None:
        return share_goal("macs", costs.macs(shapes), config.macs, groups)
    if config.params is not None:
        cost = costs.params(shapes, groups, counts)
        return share_goal("params", cost, config.params, groups)
    assert config.size_mb is not None
    cost = sizes.size_mb(family.rewritten(model), shapes, groups, stored)
    whole = cost.of({group.name: group.channels for group in groups})
    return Goal(
        key="size_mb",
        cost=cost,
        whole=whole,
        limit=config.size_mb,
        asked=config.size_mb,
        share=False,
    )


def share_goal(key: PruneTarget, cost: Cost, share: float, groups: Sequence[Group]) -> Goal:
    """The goal of keeping a share of what the network costs."""
    whole = cost.of({group.name: group.channels for group in groups})
    return Goal(key=key, cost=cost, whole=whole, limit=share * whole, asked=share, share=True)


def plan_of(
    model: nn.Module,
    shape: InputShape,
    structure: Structure,
    goal: Goal,
    config: PruneConfig,
    images: JudgedImages,
) -> Plan:
    """What a search for widths starts from.

    Args:
        model: in prunable form.
        shape: of an image.
        structure: of the network.
        goal: whose cost counts.
        config: criterion and rounding.
        images: for criteria that look at gradients.

    Raises:
        InputError: the goal cannot be reached; gives the nearest that can, and the layers that
            are at their floor.
    """
    plan = Plan(
        structure=structure,
        groups=groups_of(model, shape, structure),
        scores=scores(model, shape, structure, config.criterion, images),
        cost=goal.cost,
        round_to=config.round_to,
    )
    if (least := goal.cost.of(plan.floor())) > goal.limit:
        raise InputError(_out_of_reach(goal, config, least, plan.floor()))
    return plan


def prune_to(model: nn.Module, shape: InputShape, plan: Plan, widths: Mapping[str, int]) -> Pruned:
    """Remove the least important channels of every group, down to `widths`.

    Args:
        model: in prunable form; not changed.
        shape: of an image.
        plan: of this model.
        widths: channels to keep, by group.

    Raises:
        RuntimeError: the pruned network is not the original with those channels zeroed.
    """
    removed = weakest(plan, widths)
    pruned = remove(model, shape, plan.structure, removed)
    difference = masked_difference(model, pruned, plan.groups, removed, shape)
    if not difference <= EQUALITY_TOLERANCE:
        raise RuntimeError(
            f"the pruned network differs from the masked one by {difference:.2e} of its largest "
            f"output (allowed {EQUALITY_TOLERANCE:.0e}); this is a bug in PocketNest"
        )
    return Pruned(model=pruned, removed=removed, difference=difference)


def _out_of_reach(goal: Goal, config: PruneConfig, least: float, floor: Mapping[str, int]) -> str:
    """What was asked, the nearest that can be had, and which layers stand in the way."""
    nearest = least / goal.whole if goal.share else least
    at_floor = [f"{name} ({width})" for name, width in floor.items()][:_LISTED]
    more = len(floor) - len(at_floor)
    return (
        f"prune.{goal.key}: got {goal.asked:g}; this network with channel counts rounded to "
        f"{config.round_to} reaches {_rounded_up(nearest)} at the least; ask for that or more, or "
        f"lower prune.round_to. Layers at their floor, with their channels: {', '.join(at_floor)}"
        + (f" and {more} more" if more else "")
    )


def _rounded_up(value: float) -> str:
    """Three digits behind the point, never below `value`: asked for, it must be reached."""
    return f"{-(-value * 1000 // 1) / 1000:.3f}"


@following("pruned weights")
def take_shapes(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give `model` the widths found in `state` and load it; the way back from a saved pruning.

    Raises:
        InputError: the state has other names than the model.
    """
    wanted, found = set(model.state_dict()), set(state)
    if wanted != found:
        odd = sorted(wanted ^ found)
        raise InputError(f"pruned weights do not fit the network: {', '.join(odd[:5])}")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = state[f"{name}.weight"]
            grouped = module.groups > 1
            depthwise = grouped and module.groups == module.out_channels
            module.groups = weight.shape[0] if depthwise else module.groups
            module.out_channels = weight.shape[0]
            module.in_channels = weight.shape[1] * module.groups
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = state[f"{name}.weight"].shape[0]
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = state[f"{name}.weight"].shape
        else:
            continue
        for key, tensor in list(module.named_parameters()) + list(module.named_buffers()):
            tensor.data = torch.empty_like(state[f"{name}.{key}"])
    model.load_state_dict(state)
