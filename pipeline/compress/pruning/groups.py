"""Groups of tied channels: what torch-pruning's dependency graph says of a network.

The network is taken in its family's prunable form, the form in which that graph can follow every
tie between channels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from pipeline.base.errors import InputError
from pipeline.networks.family import Structure
from pipeline.recipe.input_shape import InputShape

Removed = Mapping[str, Sequence[int]]
"""Indices of the channels to remove, by the name of their group."""

STEM = "stem"

_OUTPUT = {tp.prune_conv_out_channels, tp.prune_linear_out_channels}
_INPUT = {tp.prune_conv_in_channels, tp.prune_linear_in_channels}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that can only be removed together, in every layer that makes or reads them.

    Attributes:
        name: of the first convolution that makes them.
        channels: how many there are.
        parts: cardinal groups they are in; every part must lose the same of its channels.
        makers: convolutions whose outputs they are.
        readers: convolutions and linear layers whose inputs they are.
        norms: batch normalisations of them; zeroed there, a channel is gone for its readers.
        stage: where they are made: `stem`, or the path of a stage.
    """

    name: str
    channels: int
    parts: int
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    norms: tuple[str, ...]
    stage: str = STEM


def stage_of(layer: str, stages: Sequence[str]) -> str:
    """The stage that a layer stands in, by its path; all that stands in none is the stem."""
    inside = (stage for stage in stages if layer == stage or layer.startswith(f"{stage}."))
    return next(inside, STEM)


def tied(model: nn.Module, shape: InputShape, structure: Structure) -> tuple[Any, dict[Group, Any]]:
    """torch-pruning's dependency graph of a network in prunable form, and its record of each group.

    The classifier's outputs are the classes, and in no group.

    Args:
        model: in evaluation mode, its parameters with `requires_grad`.
        shape: of an image.
        structure: of the network.
    """
    place = next(model.parameters()).device
    example = torch.zeros(shape.batch(1), device=place)
    graph = tp.DependencyGraph().build_dependency(model, example)
    names = {module: name for name, module in model.named_modules()}
    order = {name: index for index, name in enumerate(names.values())}
    classifier = model.get_submodule(structure.classifier)
    records = graph.get_all_groups(ignored_layers=[classifier], root_module_types=[nn.Conv2d])
    found = {_group(record, names, order, structure): record for record in records}
    return graph, dict(sorted(found.items(), key=lambda item: order[item[0].name]))


def _group(
    found: Any, names: dict[nn.Module, str], order: dict[str, int], structure: Structure
) -> Group:
    makers, readers, norms, parts = [], [], [], 1
    for dependency, _ in found:
        module = dependency.target.module
        if isinstance(module, nn.BatchNorm2d):
            norms.append(names[module])
        elif dependency.handler in _OUTPUT:
            makers.append(names[module])
        elif dependency.handler in _INPUT:
            readers.append(names[module])
        if isinstance(module, nn.Conv2d):
            parts = max(parts, module.groups)
    in_order = [tuple(sorted(set(part), key=order.__getitem__)) for part in (makers, readers)]
    return Group(
        name=in_order[0][0],
        channels=len(found[0].idxs),
        parts=parts,
        makers=in_order[0],
        readers=in_order[1],
        norms=tuple(sorted(set(norms), key=order.__getitem__)),
        stage=stage_of(in_order[0][0], structure.stages),
    )


def groups_of(model: nn.Module, shape: InputShape, structure: Structure) -> tuple[Group, ...]:
    """Every group of a network in prunable form, in the order of the layers that make them.

    Raises:
        InputError: the network has channels that pruning cannot follow; names the layer.
    """
    found = tuple(tied(differentiable(model), shape, structure)[1])
    _refuse_unfollowed(found)
    return found


def _refuse_unfollowed(groups: Sequence[Group]) -> None:
    """Stop at channels whose removal could not be compared with their being zero."""
    for group in groups:
        if not group.norms:
            raise InputError(
                f"prune: the channels that {group.name} makes have no batch normalisation behind "
                "them, and pruning zeroes channels there; put one behind it, or set prune: null"
            )
    read: dict[str, str] = {}
    for group in groups:
        for reader in group.readers:
            if (other := read.setdefault(reader, group.name)) != group.name:
                raise InputError(
                    f"prune: {reader} reads the channels of {other} beside those of {group.name}, "
                    "a concatenation, which pruning does not follow yet; set prune: null"
                )


def differentiable(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters all have gradients: the graph is read off them."""
    return copy.deepcopy(model).eval().requires_grad_(True)


def check_removed(groups: Sequence[Group], removed: Removed) -> None:
    """Refuse a set of channels that cannot be removed.

    Raises:
        InputError: names the group and what is wrong: no such group or channel, a channel twice,
            nothing left, or cardinal groups that lose different channels.
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


def remove(
    model: nn.Module, shape: InputShape, structure: Structure, removed: Removed
) -> nn.Module:
    """A copy of `model` without the channels `removed`.

    Args:
        model: in prunable form; not changed.
        shape: of an image.
        structure: of the network.
        removed: channels by group.

    Raises:
        InputError: the channels cannot be removed (see `check_removed`).
    """
    pruned = differentiable(model)
    graph, found = tied(pruned, shape, structure)
    check_removed(tuple(found), removed)
    for name, indices in removed.items():
        if indices:
            maker = pruned.get_submodule(name)
            graph.get_pruning_group(maker, tp.prune_conv_out_channels, list(indices)).prune()
    return pruned.eval()


def mask(model: nn.Module, groups: Sequence[Group], removed: Removed) -> nn.Module:
    """A copy of `model` with the channels `removed` zeroed, for comparison.

    A channel is zeroed by its batch normalisations' weight and bias, so that what reads it gets
    exact zeros.
    """
    masked = copy.deepcopy(model).eval()
    modules = dict(masked.named_modules())
    norms = {group.name: group.norms for group in groups}
    with torch.no_grad():
        for name, indices in removed.items():
            for norm in norms[name]:
                modules[norm].weight[list(indices)] = 0.0
                modules[norm].bias[list(indices)] = 0.0
    return masked


def masked_difference(
    original: nn.Module,
    pruned: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    shape: InputShape,
) -> float:
    """Largest output difference between `pruned` and `original` with the channels zeroed.

    Relative to the largest output, over four images of noise.
    """
    generator = torch.Generator().manual_seed(0)
    first = next(original.parameters())
    images = torch.randn(shape.batch(4), generator=generator).to(first)
    with torch.no_grad():
        expected = mask(original, groups, removed)(images)
        got = pruned.eval()(images)
    return float((expected - got).abs().max() / expected.abs().max())
