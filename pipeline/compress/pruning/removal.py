"""Channels removed from a network, and the same channels masked, which must come to the same.

A channel is masked where it is read: every layer that reads it has zeros for weights there. What
lies between (an activation that makes something of zero, a gate, a padding, a batch normalisation)
does not matter then, and neither does whether there is any.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning.groups import Cut, CutKind, Group, Removed
from pipeline.recipe.input_shape import InputShape

_CONV = tp.pruner.function.PrunerBox[tp.ops.OPTYPE.CONV]
_LINEAR = tp.pruner.function.PrunerBox[tp.ops.OPTYPE.LINEAR]


def check_removed(groups: Sequence[Group], removed: Removed) -> None:
    """Refuse a set of channels that cannot be removed.

    Raises:
        InputError: names the group and what is wrong: no such group or channel, a channel twice,
            nothing left, or parts that lose different channels.
    """
    known = {group.name: group for group in groups}
    for name, indices in removed.items():
        group = known.get(name)
        if group is None:
            raise InputError(
                f"pruning: {name} makes no channels of its own; groups are {', '.join(known)}"
            )
        odd = [index for index in indices if not 0 <= index < group.channels]
        if odd or len(set(indices)) < len(indices):
            raise InputError(
                f"pruning: {name}: got channels {list(indices)[:8]}; give each of 0 to "
                f"{group.channels - 1} once at most"
            )
        if len(indices) == group.channels:
            raise InputError(
                f"pruning: {name} would have no channel left; keep at least {group.parts}"
            )
        size = group.channels // group.parts
        of_part = [{i % size for i in indices if i // size == part} for part in range(group.parts)]
        if any(part != of_part[0] for part in of_part):
            raise InputError(
                f"pruning: {name} has {group.parts} cardinal groups of {size} channels, and every "
                "one must lose the same of them"
            )


def remove(model: nn.Module, groups: Sequence[Group], removed: Removed) -> nn.Module:
    """A copy of `model` in evaluation mode without the channels `removed`.

    Args:
        model: in prunable form; not changed.
        groups: of its channels.
        removed: channels by group.

    Raises:
        InputError: the channels cannot be removed (see `check_removed`).
    """
    check_removed(groups, removed)
    pruned = copy.deepcopy(model).eval().requires_grad_(True)
    gone: defaultdict[tuple[str, CutKind], list[int]] = defaultdict(list)
    for group in groups:
        for cut in group.cuts:
            gone[cut.layer, cut.kind] += _positions(cut, removed.get(group.name, ()))
    modules = dict(pruned.named_modules())
    for (name, kind), positions in gone.items():
        if positions and name in modules:
            _cut_layer(modules[name], kind, sorted(positions))
        elif positions:
            _cut_parameter(pruned, name, positions)
    return pruned


def _positions(cut: Cut, channels: Sequence[int]) -> list[int]:
    """Where a layer has channels of a group."""
    wanted = set(channels)
    return [p for p, c in zip(cut.positions, cut.channels, strict=True) if c in wanted]


def _cut_layer(layer: nn.Module, kind: CutKind, positions: list[int]) -> None:
    """Have torch-pruning take outputs, inputs or channels out of a layer, in place."""
    # By what it was: a grouped convolution that has lost outputs may look like a depthwise one.
    if kind in ("makes", "reads"):
        pruner = _LINEAR if isinstance(layer, nn.Linear) else _CONV
    else:
        pruner = tp.pruner.function.PrunerBox[tp.ops.module2type(layer)]
    (pruner.prune_in_channels if kind == "reads" else pruner.prune_out_channels)(layer, positions)


def _cut_parameter(model: nn.Module, name: str, positions: Sequence[int]) -> None:
    """Take numbers out of a parameter of no layer, along its last axis of more than one."""
    owner, _, own = name.rpartition(".")
    parameter = model.get_parameter(name)
    axis = max(axis for axis, size in enumerate(parameter.shape) if size > 1)
    left = [place for place in range(parameter.shape[axis]) if place not in set(positions)]
    narrow = parameter.detach().index_select(axis, torch.tensor(left, device=parameter.device))
    setattr(model.get_submodule(owner), own, nn.Parameter(narrow))


def mask(model: nn.Module, groups: Sequence[Group], removed: Removed) -> nn.Module:
    """A copy of `model` in which nothing reads the channels `removed`, for comparison."""
    masked = copy.deepcopy(model).eval()
    modules = dict(masked.named_modules())
    with torch.no_grad():
        for group in groups:
            for cut in group.cuts:
                if cut.kind == "reads":
                    gone = _positions(cut, removed.get(group.name, ()))
                    _ignore(modules[cut.layer], gone)
    return masked


def _ignore(layer: nn.Module, inputs: Sequence[int]) -> None:
    """Zero what a layer does with some of its inputs, in place."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    each, groups = weight.shape[1], int(getattr(layer, "groups", 1))
    rows = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
    places = torch.tensor(inputs, dtype=torch.long, device=weight.device)
    rows[places // each, :, places % each] = 0.0


def masked_difference(
    original: nn.Module,
    pruned: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    shape: InputShape,
) -> float:
    """Largest output difference between `pruned` and `original` with the channels masked.

    Relative to the largest output, over four images of noise.
    """
    generator = torch.Generator().manual_seed(0)
    first = next(original.parameters())
    images = torch.randn(shape.batch(4), generator=generator).to(first)
    with torch.no_grad():
        got = pruned.eval()(images)  # first: a network that does not run has cost nothing yet
        expected = mask(original, groups, removed)(images)
    return float((expected - got).abs().max() / expected.abs().max())
