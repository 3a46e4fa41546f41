"""The operations of a network that are not quantized.

A recipe names modules (`qat.float`). What has weights is in float where it stands in one of them.
An operation without weights goes with what is around it: between int8 layers its numbers are
rounded before and after whatever computes it, so that it is an int8 layer like the others, and
between float layers it rounds nothing.

    int8 conv -> round -> float conv -> relu -> max pool -> float conv -> round -> int8 conv
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from pipeline.base.errors import InputError
from pipeline.compress.quantization.quantizer import CLAMPS, RULES, last_of_group, tensor_inputs
from pipeline.networks.lowering.builder import ONLY_FLOAT
from pipeline.networks.lowering.places import FloatPlaces

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """An operation, with the batch normalisation and the clamp that belong to it.

    Attributes:
        nodes: in the order of computation.
    """

    nodes: tuple[fx.Node, ...]

    @property
    def kind(self) -> str | None:
        """Its rule; None of an operation that is known in float only."""
        first = self.nodes[0]
        return None if first.meta.get(ONLY_FLOAT) else RULES.get(first.target)

    @cached_property
    def inputs(self) -> list[fx.Node]:
        """What it reads, constants left out."""
        return tensor_inputs(self.nodes[0])

    @cached_property
    def readers(self) -> list[fx.Node]:
        """Who reads its numbers, and not only their shape."""
        return [user for user in self.nodes[-1].users if user.target is not aten.sym_size.int]

    def stands_in(self, places: FloatPlaces) -> bool:
        """Whether it is named; a clamp behind it does not say so."""
        named = self.nodes[:1] + tuple(
            node for node in self.nodes[1:] if node.target is aten.batch_norm.default
        )
        return any(places.hold(node) for node in named)


def float_operations(
    graph: fx.Graph, places: FloatPlaces, *, learned_input: bool = True
) -> set[fx.Node]:
    """The nodes of a lowered graph whose results are not rounded.

    Args:
        graph: from `lower`, not annotated.
        places: what the recipe leaves in float.
        learned_input: whether the image has a grid that is learned; it then is one of the nodes
            where a float layer reads it. Camera pixels are integers anyway.

    Raises:
        InputError: a pattern leaves nothing in float, or nothing is left in int8.
    """
    groups = _groups(graph)
    if not places.patterns:
        return set()
    found = {group for group in groups if group.kind is None or group.stands_in(places)}
    found -= {group for group in found if _alone(group, found)}
    found |= _between(groups, found)
    named = _nodes(found)  # what moves numbers may be named, and is int8 all the same
    found -= _moved_for_int8(groups, found)
    nodes = _nodes(found)
    for pattern in places.patterns:
        if not any(FloatPlaces((pattern,)).hold(node) for node in named):
            raise InputError(
                f"qat.float: got {pattern!r}, and nothing of it would stay in float: without "
                "weights of its own it is part of an int8 layer, or stands between int8 layers, "
                "where its numbers are rounded before and after; leave the pattern out, or name a "
                "layer beside it"
            )
    if not any(_has_weights(group) for group in groups if group not in found):
        raise InputError(
            "qat.float: nothing with weights is left in int8; say target.precision: float, or "
            "name fewer modules"
        )
    image = next(node for node in graph.nodes if node.op == "placeholder")
    return nodes | ({image} if learned_input and not nodes.isdisjoint(image.users) else set())


def _groups(graph: fx.Graph) -> list[_Group]:
    """All operations on images and vectors, in the order of computation."""
    groups: list[_Group] = []
    seen: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        counts = not isinstance(value, torch.Tensor) or value.dim() < 2
        if node.op != "call_function" or node in seen or counts:
            continue
        nodes, last = [node], node if RULES.get(node.target) == "input" else last_of_group(node)
        while nodes[-1] is not last:
            nodes.append(next(user for user in nodes[-1].users if _is_next(user)))
        seen.update(nodes)
        groups.append(_Group(nodes=tuple(nodes)))
    return groups


def _is_next(user: fx.Node) -> bool:
    return user.target is not aten.sym_size.int


def _has_weights(group: _Group) -> bool:
    return group.kind == "weighted"


def _nodes(groups: Iterable[_Group]) -> set[fx.Node]:
    return {node for group in groups for node in group.nodes}


def _alone(group: _Group, floats: set[_Group]) -> bool:
    """Whether an operation without weights stands between int8 layers alone."""
    nodes = _nodes(floats)
    around: list[Any] = [*group.inputs, *group.readers]
    free = group.kind is not None and not _has_weights(group)
    return free and not any(node in nodes or node.op == "output" for node in around)


def _moved_for_int8(groups: Sequence[_Group], floats: set[_Group]) -> set[_Group]:
    """The operations that only move or pick numbers, and whose readers are int8 layers.

    What is rounded is what goes into them: the numbers are the same, and integers move faster.
    """
    kept = _nodes(floats)
    moved = set()
    for group in reversed(groups):
        first = group.nodes[0]
        moves = group in floats and group.kind == "input" and first.target not in CLAMPS
        if moves and not any(node in kept or node.op == "output" for node in group.readers):
            moved.add(group)
            kept -= {first}
    return moved


def _between(groups: Sequence[_Group], floats: set[_Group]) -> set[_Group]:
    """The operations without weights that stand between float layers, alone or in a row."""
    nodes = _nodes(floats)
    free = [group for group in groups if group not in floats and not _has_weights(group)]
    after: set[fx.Node] = set()
    for group in free:
        if group.inputs and all(node in nodes | after for node in group.inputs):
            after.update(group.nodes)
    before: set[fx.Node] = set()
    for group in reversed(free):
        if all(node in nodes | before or node.op == "output" for node in group.readers):
            before.update(group.nodes)
    return {group for group in free if group.nodes[0] in after & before}
