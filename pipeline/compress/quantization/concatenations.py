"""One grid for all that a concatenation puts side by side.

TFLite and XNNPACK concatenate numbers of one grid only; other inputs are rounded again to that of
the output. Inputs share a grid that covers them all, so that nothing is rounded twice, except:

- those with a grid of their own that is fixed, such as a sigmoid's, and
- all, where some are never negative and others are: the former would lose half of their steps, and
  their ReLU would no longer be the end of their grid.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize, FixedFakeQuantize
from pipeline.compress.quantization.quantizer import RULES

aten = torch.ops.aten
_RELU = {aten.relu.default, aten.relu_.default}
_SUMS = {aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mean.dim, aten.cat.default}


def tie_concatenations(graph: fx.GraphModule) -> None:
    """Give the inputs of every concatenation and its output one grid, in place.

    Args:
        graph: with fake quantization put in, not calibrated.
    """
    for node in [n for n in graph.graph.nodes if n.target is aten.cat.default]:
        inputs = list(node.args[0])
        if len({_never_negative(graph, one) for one in inputs}) > 1:
            continue
        readers = [n for n in node.users if n.op == "call_module"]
        found = [_module(graph, one) for one in (*inputs, *readers)]
        tie(one for one in found if one is not None)


def tie(members: Iterable[ActivationFakeQuantize]) -> None:
    """Have some learn one grid together, and all that they are tied to already."""
    whole = tuple(dict.fromkeys(one for member in members for one in member.tied))
    for one in whole:
        one.tied = whole


def _module(graph: fx.GraphModule, node: Any) -> ActivationFakeQuantize | None:
    """What rounds at a node to a grid that is learned."""
    if node.op != "call_module":
        return None
    found = graph.get_submodule(str(node.target))
    fixed = isinstance(found, FixedFakeQuantize) or not isinstance(found, ActivationFakeQuantize)
    return None if fixed else found  # type: ignore[return-value]


def _never_negative(graph: fx.GraphModule, node: Any) -> bool:
    """Whether a node gives no number below zero, as far as its operation says."""
    if node.op == "call_module":
        return _never_negative(graph, node.args[0])
    if node.target in _RELU or node.target in {aten.sigmoid.default, aten.softmax.int}:
        return True
    if node.target is aten.hardtanh.default:
        return len(node.args) > 1 and operator.ge(node.args[1], 0)
    if node.target in _SUMS or RULES.get(node.target) == "input":
        return all(
            _never_negative(graph, one) for one in node.all_input_nodes if one.op != "get_attr"
        )
    return False
