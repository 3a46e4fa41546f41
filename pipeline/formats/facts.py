"""What an exported file says of itself, and the comparison with what was learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.records import ScalesExact

quantized = torch.ops.quantized_decomposed

Grid = tuple[float, int]
"""Scale and zero point of an int8 activation (uint8 files: zero point - 128)."""


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Read from a file, never from the writer's memory.

    Attributes:
        ops: number of operations by type.
        int8_macs: multiply-accumulates of operations with int8 data and weights, one image.
        macs: those of all operations.
        grids: activation grids, one per quantized tensor.
        weights: weight scales, one tuple per quantized weight tensor.
    """

    ops: dict[str, int]
    int8_macs: int
    macs: int
    grids: Counter[Grid]
    weights: Counter[tuple[float, ...]]

    @property
    def int8_coverage(self) -> float:
        """Share of multiply-accumulates that run in int8 kernels, 0 to 1."""
        return self.int8_macs / self.macs if self.macs else 0.0


def conv_macs(weight_shape: Sequence[int], output_positions: int) -> int:
    """Multiply-accumulates of a convolution: weights (out, in / groups, ...) x positions."""
    total = output_positions
    for size in weight_shape:
        total *= size
    return total


def learned_scales(
    program: torch.export.ExportedProgram,
) -> tuple[Counter[Grid], Counter[tuple[float, ...]]]:
    """The grids and weight scales of a quantized program."""
    grids: Counter[Grid] = Counter()
    weights: Counter[tuple[float, ...]] = Counter()
    tensors = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target
    }
    stored = {**program.state_dict, **program.constants}
    for node in program.graph.nodes:
        if node.target is quantized.quantize_per_tensor.default:
            grids[(float(node.args[1]), int(node.args[2]))] += 1
        elif node.target is quantized.dequantize_per_channel.default:
            scales = stored[tensors[node.args[1].name]]
            weights[tuple(float(s) for s in scales)] += 1
    return grids, weights


def scales_exact(program: torch.export.ExportedProgram, facts: FileFacts) -> ScalesExact | None:
    """How many of the learned scales the file holds bit for bit; None for a float program.

    Every activation grid and every channel's weight scale counts once. A grid in the file that
    was never learned counts as one that is not the same.
    """
    grids, weights = learned_scales(program)
    if not grids:
        return None
    foreign = sum(count for grid, count in facts.grids.items() if grid not in grids)
    same_weights = sum(len(w) * n for w, n in (weights & facts.weights).items())
    return ScalesExact(
        same=(grids & facts.grids).total() + same_weights,
        total=grids.total() + foreign + sum(len(w) * n for w, n in weights.items()),
    )
