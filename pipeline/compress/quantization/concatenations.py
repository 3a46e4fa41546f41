"""One grid for all that a concatenation puts side by side.

TFLite and XNNPACK concatenate integers of one grid only. What does not suit it, since it is never
negative or has a fixed grid, was given an operation of its own before
(`pipeline.networks.lowering.sides`); so nothing is rounded twice for the sake of a format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize, FixedFakeQuantize

aten = torch.ops.aten


def tie_concatenations(graph: fx.GraphModule) -> None:
    """Give the inputs of every concatenation and its output one grid, in place.

    One that stays in float puts numbers side by side, whatever grids some of them had.

    Args:
        graph: with fake quantization put in, not calibrated.
    """
    for node in [n for n in graph.graph.nodes if n.target is aten.cat.default]:
        if any(one.op != "call_module" for one in (*node.args[0], *node.users)):
            continue
        readers = list(node.users)
        found = [learned_grid(graph, one) for one in (*node.args[0], *readers)]
        tie(one for one in found if one is not None)


def tie(members: Iterable[ActivationFakeQuantize]) -> None:
    """Have some learn one grid together, and all that they are tied to already."""
    whole = tuple(dict.fromkeys(one for member in members for one in member.tied))
    for one in whole:
        one.tied = whole


def learned_grid(graph: fx.GraphModule, node: Any) -> ActivationFakeQuantize | None:
    """What rounds at a node to a grid that is learned."""
    if node.op != "call_module":
        return None
    found = graph.get_submodule(str(node.target))
    fixed = isinstance(found, FixedFakeQuantize) or not isinstance(found, ActivationFakeQuantize)
    return None if fixed else found  # type: ignore[return-value]
