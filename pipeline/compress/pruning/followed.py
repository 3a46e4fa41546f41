"""Which groups of channels can be pruned: those that come to the same removed and masked.

torch-pruning takes an operation that it does not know for one that leaves channels where they are,
and a network's code may have widths written into it. So its groups are tried: some channels of
every group are removed, from a copy whose random weights let every channel be seen, and the outputs
compared with those of the masked copy. Weights of the network itself decide nothing.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning.groups import (
    Group,
    Removed,
    Ties,
    differentiable,
    first_line,
    ties,
)
from pipeline.compress.pruning.kept import Kept, by_reason
from pipeline.compress.pruning.removal import masked_difference, remove
from pipeline.networks.family import Structure
from pipeline.recipe.input_shape import InputShape

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest, that rounding alone may make."""

_LEAST_SPREAD = 1e-12
_TRIES = 2
"""Other weights and other channels each time: a gate that ReLU shut has shown nothing."""


@dataclass(frozen=True, kw_only=True)
class Followed:
    """The channels of a network.

    Attributes:
        groups: that can be pruned, in the order of the layers that make them.
        kept: layers whose channels all stay.
        records: torch-pruning's own of the groups, by name, of `judged`.
        judged: the copy of the network that the records are of.
    """

    groups: tuple[Group, ...]
    kept: tuple[Kept, ...]
    records: dict[str, object]
    judged: nn.Module


def groups_of(model: nn.Module, shape: InputShape, structure: Structure) -> tuple[Group, ...]:
    """Every group of a network in prunable form that can be pruned; see `followed`."""
    return followed(model, shape, structure).groups


def followed(
    model: nn.Module,
    shape: InputShape,
    structure: Structure,
    known: tuple[Kept, ...] | None = None,
) -> Followed:
    """What can be pruned of a network, and what cannot.

    Args:
        model: in prunable form; not changed.
        shape: of an image.
        structure: of the network.
        known: layers that are known to stay, of this network or of what it was before it was
            pruned; nothing is tried then.

    Raises:
        InputError: torch-pruning cannot follow the network, or nothing of it.
    """
    judged = differentiable(model)
    found = ties(judged, shape, structure)
    if known is not None:
        stay = {one.layer for one in known}
        groups = tuple(group for group in found.groups if group.name not in stay)
        return Followed(groups=groups, kept=known, records=found.records, judged=judged)
    groups = found.groups
    refused: dict[str, str] = {}
    for seed in range(_TRIES):
        refused |= _refused(lively(model, shape, seed), groups, shape, seed)
        groups = tuple(group for group in groups if group.name not in refused)
    kept = _kept(judged, found, refused)
    if not groups:
        named = "; ".join(by_reason(kept)[:3])
        raise InputError(
            f"prune: no channel of this network can be removed ({named}); set prune: null"
        )
    return Followed(groups=groups, kept=kept, records=found.records, judged=judged)


def _kept(model: nn.Module, found: Ties, refused: dict[str, str]) -> tuple[Kept, ...]:
    """Layers that make channels of no group, in the order of the network."""
    reasons = dict(found.kept)
    for group in found.groups:
        if group.name in refused:
            reasons |= dict.fromkeys(group.makers, refused[group.name])
    return tuple(
        Kept(layer=name, channels=len(module.weight), reason=reasons[name])
        for name, module in model.named_modules()
        if name in reasons
    )


def lively(model: nn.Module, shape: InputShape, seed: int = 0) -> nn.Module:
    """A copy with random weights, in evaluation mode, whose layers all give numbers around 1.

    Convolutions and linear layers are scaled by what they give for noise (Mishkin and Matas 2016,
    https://arxiv.org/abs/1511.06422), so that no gate is shut and no branch drowns another.
    """
    generator = torch.Generator().manual_seed(seed)
    alive = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for module in alive.modules():
        for own in module.parameters(recurse=False):
            own.copy_(0.5 + torch.rand(own.shape, generator=generator))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _randomise(module, generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
    _scale(alive, shape, generator)
    return alive


def _randomise(norm: nn.modules.batchnorm._BatchNorm, generator: torch.Generator) -> None:
    """Statistics and biases as after training, more of them above zero than below."""
    for tensor, centre in ((norm.running_mean, 0.0), (norm.running_var, 1.0), (norm.bias, 0.5)):
        if tensor is not None:
            noise = torch.rand(tensor.shape, generator=generator) - 0.5
            tensor.copy_(centre + noise)


def _scale(model: nn.Module, shape: InputShape, generator: torch.Generator) -> None:
    """Scale every convolution and linear layer to outputs of deviation 1, and give it biases."""
    seen = set()

    def scaled(layer: nn.Module, _: object, output: Tensor) -> Tensor | None:
        spread = float(output.std())
        if layer in seen or not _LEAST_SPREAD < spread < float("inf"):
            return None
        seen.add(layer)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layer.weight.div_(spread)
        output = output / spread
        if layer.bias is None:
            return output
        layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator))
        return output + layer.bias.view(-1, *[1] * (output.dim() - 2))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(scaled) for layer in layers]
    try:
        with torch.no_grad():
            model(torch.randn(shape.batch(2), generator=generator))
    finally:
        for hook in hooks:
            hook.remove()


def _refused(
    model: nn.Module, groups: Sequence[Group], shape: InputShape, seed: int
) -> dict[str, str]:
    """The groups that do not come to the same removed and masked, by name, and why."""
    if not groups or _wrong(model, groups, shape, seed) is None:
        return {}
    # Those that pass a view or a split are mostly the ones: the others are tried together.
    odd = [group for group in groups if group.passes]
    refused = _halved(model, [group for group in groups if not group.passes], shape, seed)
    refused |= _halved(model, odd, shape, seed)
    passed: list[Group] = []
    left = [group for group in groups if group.name not in refused]
    if _wrong(model, left, shape, seed) is None:
        return refused
    for group in left:  # some pass alone that do not pass together
        reason = _wrong(model, [*passed, group], shape, seed)
        if reason is None:
            passed.append(group)
        else:
            refused[group.name] = reason
    return refused


def _halved(
    model: nn.Module, groups: Sequence[Group], shape: InputShape, seed: int
) -> dict[str, str]:
    """Those that are wrong among groups that are tried together, found by halves."""
    reason = _wrong(model, groups, shape, seed) if groups else None
    if reason is None:
        return {}
    if len(groups) == 1:
        return {groups[0].name: reason}
    middle = len(groups) // 2
    first, second = (
        _halved(model, part, shape, seed) for part in (groups[:middle], groups[middle:])
    )
    return first | second or {group.name: reason for group in groups[middle:]}


def _wrong(model: nn.Module, groups: Sequence[Group], shape: InputShape, seed: int) -> str | None:
    """Why some channels of all `groups` cannot go; None where they can."""
    removed = some_of_each(groups, seed)
    try:
        pruned = remove(model, groups, removed)
        difference = masked_difference(model, pruned, groups, removed, shape)
    except Exception as error:  # the network's own code, of any kind
        return f"without some of them the network does not run ({first_line(error)})"
    if difference <= TOLERANCE:
        return None
    passes = ", ".join(dict.fromkeys(name for group in groups for name in group.passes))
    return f"torch-pruning does not know where they are behind {passes or 'its layers'}"


def some_of_each(groups: Sequence[Group], seed: int = 0) -> Removed:
    """About a third of the channels of every group, by chance, the same of each of its parts."""
    removed = {}
    for group in groups:
        size = group.channels // group.parts
        count = -(-size // 3) if size > 1 else 0
        gone = random.Random(f"{seed} {group.name}").sample(range(size), count)
        removed[group.name] = sorted(p * size + i for p in range(group.parts) for i in gone)
    return removed
