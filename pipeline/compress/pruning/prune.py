"""Channel pruning of a network to a target, checked against the masked original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError, following
from pipeline.compress.pruning import costs, sizes
from pipeline.compress.pruning.costs import Cost
from pipeline.compress.pruning.followed import Followed, followed
from pipeline.compress.pruning.groups import Removed
from pipeline.compress.pruning.importance import JudgedImages, judged_by_norm, scores
from pipeline.compress.pruning.kept import Kept, by_reason
from pipeline.compress.pruning.removal import masked_difference, remove
from pipeline.compress.pruning.stored import Bytes
from pipeline.compress.pruning.widths import Plan, in_tiles, weakest
from pipeline.networks.count import count
from pipeline.networks.family import AnyFamily, Structure
from pipeline.networks.lowering.places import FloatPlaces
from pipeline.networks.own_state import take_state
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
        kept: layers whose channels all stay; found out once, before anything is removed.
    """

    key: PruneTarget
    cost: Cost
    whole: float
    limit: float
    asked: float
    share: bool
    kept: tuple[Kept, ...] = ()

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
    family: AnyFamily,
    model: nn.Module,
    shape: InputShape,
    config: PruneConfig,
    stored: Bytes,
    stored_float: Bytes | None = None,
    floats: FloatPlaces = FloatPlaces(),  # noqa: B008  frozen
) -> Goal:
    """The goal of a recipe that asks for MACs, parameters or bytes.

    Args:
        family: of the network.
        model: in prunable form, before anything is removed.
        shape: of an image.
        config: the recipe's `prune`, not with a latency.
        stored: bytes that a file of the target's format and precision holds.
        stored_float: those of layers that stay in float; None where none do.
        floats: these layers.
    """
    found = followed(model, shape, family.structure(model))
    groups, counts = found.groups, count(model, shape)
    shapes = costs.layer_shapes(groups, counts)
    if config.macs is not None:
        return _share_goal("macs", costs.macs(shapes), config.macs, found)
    if config.params is not None:
        cost = costs.params(shapes, groups, counts)
        return _share_goal("params", cost, config.params, found)
    assert config.size_mb is not None

    def each(layer: str) -> Bytes:
        return stored_float if stored_float and floats.hold_path(layer) else stored

    cost = sizes.size_mb(family.rewritten(model), shapes, each)
    whole = cost.of({group.name: group.channels for group in groups})
    return Goal(
        key="size_mb",
        cost=cost,
        whole=whole,
        limit=config.size_mb,
        asked=config.size_mb,
        share=False,
        kept=found.kept,
    )


def _share_goal(key: PruneTarget, cost: Cost, share: float, found: Followed) -> Goal:
    """The goal of keeping a share of what the network costs."""
    whole = cost.of({group.name: group.channels for group in found.groups})
    limit = share * whole
    return Goal(
        key=key, cost=cost, whole=whole, limit=limit, asked=share, share=True, kept=found.kept
    )


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
        goal: whose cost counts; of this network, or of what it was before it was pruned.
        config: criterion and rounding.
        images: for criteria that look at gradients.

    Raises:
        InputError: the goal cannot be reached; gives the nearest that can, the layers that are at
            their floor, and those that cannot be pruned.
    """
    found = followed(model, shape, structure, goal.kept)
    _refuse_lost(goal, found)
    plan = Plan(
        structure=structure,
        groups=found.groups,
        scores=scores(found, config.criterion, images),
        cost=goal.cost,
        round_to=config.round_to,
        kept=found.kept,
        by_norm=judged_by_norm(found.groups, config.criterion),
        in_tiles=in_tiles(model, found.groups),
    )
    if (least := goal.cost.of(plan.floor())) > goal.limit:
        raise InputError(_out_of_reach(goal, plan, least))
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
    pruned = remove(model, plan.groups, removed)
    difference = masked_difference(model, pruned, plan.groups, removed, shape)
    if not difference <= EQUALITY_TOLERANCE:
        raise RuntimeError(
            f"the pruned network differs from the masked one by {difference:.2e} of its largest "
            f"output (allowed {EQUALITY_TOLERANCE:.0e}); this is a bug in PocketNest"
        )
    return Pruned(model=pruned, removed=removed, difference=difference)


def _refuse_lost(goal: Goal, found: Followed) -> None:
    """Stop where channels that were followed before an earlier step are not any more."""
    counted = {name for term in goal.cost.terms for name in term.groups}
    if lost := sorted(counted - {group.name for group in found.groups}):
        raise InputError(
            f"prune.steps: after a step the channels of {_listed(lost)} cannot be followed any "
            "more, since a grouped convolution with one output for each group looks like a "
            "depthwise one; set prune.steps: 1, or raise prune.round_to"
        )


def _out_of_reach(goal: Goal, plan: Plan, least: float) -> str:
    """What was asked, the nearest that can be had, and which layers stand in the way."""
    nearest = least / goal.whole if goal.share else least
    at_floor = [f"{name} ({width})" for name, width in plan.floor().items()]
    return (
        f"prune.{goal.key}: got {goal.asked:g}; this network with channel counts rounded to "
        f"{plan.round_to} reaches {_rounded_up(nearest)} at the least; ask for that or more, or "
        f"lower prune.round_to. Layers at their floor, with their channels: {_listed(at_floor)}"
        + (
            f". Layers that cannot be pruned: {'; '.join(by_reason(plan.kept))}"
            if plan.kept
            else ""
        )
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


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
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in own:
            if (path := f"{name}.{key}".lstrip(".")) in state:
                tensor.data = torch.empty_like(state[path])
        _take_widths(module)
    take_state(model, state)


def _take_widths(module: nn.Module) -> None:
    """Have a layer say the widths that its tensors have."""
    if isinstance(module, nn.Conv2d):
        outputs, each = module.weight.shape[:2]
        depthwise = module.groups > 1 and module.groups == module.out_channels
        module.groups = outputs if depthwise else module.groups
        module.out_channels, module.in_channels = outputs, each * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        of_each = module.weight if module.affine else module.running_mean
        module.num_features = module.num_features if of_each is None else len(of_each)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
