"""Scales of the parts of a sum that are not too far below the sum's own.

A branch that has learned next to nothing has a tiny range. Its scale may be larger than that range
asks for: what is below a step of the sum is lost in the sum anyway.
"""

from __future__ import annotations

import torch
from torch import fx

from pipeline.compress.quantization.concatenations import learned_grid
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize
from pipeline.compress.quantization.quantizer import CLAMPS

aten = torch.ops.aten
SUMS = (aten.add.Tensor, aten.add_.Tensor)


def keep_near(graph: fx.GraphModule) -> None:
    """Have the parts of every sum learn scales that XNNPACK takes beside the sum's, in place.

    Args:
        graph: with fake quantization put in, its concatenations tied, not calibrated.
    """
    for node in [n for n in graph.graph.nodes if n.target in SUMS]:
        # What something else reads as well needs its own range there.
        alone = [n for n in node.all_input_nodes if all(user.target in SUMS for user in n.users)]
        parts = [learned_grid(graph, one) for one in alone]
        for whole in _rounding(graph, node):
            for part in parts:
                if part is not None and part not in whole.tied:
                    part.sums = (*part.sums, whole)
                    whole.parts = (*whole.parts, part)


def _rounding(graph: fx.GraphModule, node: fx.Node) -> list[ActivationFakeQuantize]:
    """What rounds a sum: what reads it, or a clamp behind it."""
    found = []
    for reader in node.users:
        if reader.target in CLAMPS:
            found += _rounding(graph, reader)
        elif (module := learned_grid(graph, reader)) is not None:
            found.append(module)
    return found
