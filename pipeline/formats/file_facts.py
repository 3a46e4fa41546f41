"""What an exported file says of itself, and the comparison with what was learned."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.formats.scales import ScalesExact

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

_KEEPING_VALUES = {
    aten.flatten.using_ints,
    aten.reshape.default,
    aten.view.default,
    aten.mean.dim,  # of one pixel
}
"""Operations that may give out what they take in."""

_TAKEN_IN = {
    aten.constant_pad_nd.default: aten.conv2d.default,
    aten.slice.Tensor: aten.slice.Tensor,
}
"""Operations that writers make a part of those that read them, where all of these are of a kind:
zeros around an image become a convolution's own padding, a cut of a cut is one cut."""

_CONVOLUTIONS = {aten.conv2d.default, aten.conv2d.padding}

Grid = tuple[float, int]
"""Scale and zero point of an int8 activation (uint8 files: zero point - 128)."""

NO_GRID: Grid = (math.nan, 0)
"""For a tensor that is written on one grid and read on another."""


class Codes(NamedTuple):
    """The whole numbers of one weight tensor, in whatever form a file stores them.

    Attributes:
        sha256: of them, as int8, in the order output channel, input, row, column.
        numbers: how many.
    """

    sha256: str
    numbers: int


def codes_of(weight: NDArray[np.int8]) -> Codes:
    """The whole numbers of a weight tensor (out channels, inputs of a group, height, width).

    What has one pixel may leave height and width out.
    """
    content = np.ascontiguousarray(weight, np.int8)
    return Codes(hashlib.sha256(content.tobytes()).hexdigest(), content.size)


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """Read from a file, never from the writer's memory.

    Attributes:
        ops: number of operations by type.
        int8_macs: multiply-accumulates of operations with int8 data and weights, one image.
        macs: those of all operations.
        layers: grid of every quantized activation, by its name; the program's name of the layer,
            save for tensors that the program does not have, such as a padded one.
        weights: weight scales, one tuple per quantized weight tensor.
        codes: the whole numbers of every quantized weight tensor.
        partitions: parts of the graph that the runtime gives to its accelerating delegate; None
            where the format's runtime has none.
        outside: operations that are in none of these parts, with the reason where it is known, by
            the name of what they make.
    """

    ops: dict[str, int]
    int8_macs: int
    macs: int
    layers: dict[str, Grid]
    weights: Counter[tuple[float, ...]]
    codes: Counter[Codes] = field(default_factory=Counter)
    partitions: int | None = None
    outside: dict[str, str] = field(default_factory=dict)

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


def program_macs(program: torch.export.ExportedProgram) -> tuple[int, int]:
    """Multiply-accumulates of a program for one image: of its int8 convolutions, and of all.

    Those that a recipe leaves in float have weights that are not rounded.
    """
    int8 = whole = 0
    for node in program.graph.nodes:
        if node.target in _CONVOLUTIONS:
            weight, output = node.args[1], node.meta["val"]
            count = conv_macs(weight.meta["val"].shape, math.prod(output.shape[2:]))
            whole += count
            rounded = weight.target is quantized.dequantize_per_channel.default
            int8 += count if rounded else 0
    return int8, whole


def learned_scales(
    program: torch.export.ExportedProgram,
) -> tuple[dict[str, Grid], Counter[tuple[float, ...]]]:
    """The grids of a quantized program, by layer name, and its weight scales.

    A grid counts once where an operation changes neither the values nor the grid, such as a
    flatten: runtimes then see one tensor. So it does where an operation may be a part of those that
    read it (`_TAKEN_IN`).
    """
    layers: dict[str, Grid] = {}
    weights: Counter[tuple[float, ...]] = Counter()
    tensors = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target
    }
    stored = {**program.state_dict, **program.constants}
    for node in program.graph.nodes:
        if node.target is quantized.quantize_per_tensor.default:
            if _repeats_grid(node):
                continue
            layers[node.name] = (float(node.args[1]), int(node.args[2]))
        elif node.target is quantized.dequantize_per_channel.default:
            scales = stored[tensors[node.args[1].name]]
            weights[tuple(float(s) for s in scales)] += 1
    return layers, weights


def learned_codes(program: torch.export.ExportedProgram) -> Counter[Codes]:
    """The whole numbers of a quantized program's weights."""
    tensors = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target
    }
    stored = {**program.state_dict, **program.constants}
    return Counter(
        codes_of(stored[tensors[node.args[0].name]].detach().numpy())
        for node in program.graph.nodes
        if node.target is quantized.dequantize_per_channel.default
    )


def _repeats_grid(quantize: torch.fx.Node) -> bool:
    """Whether the same values are on the same grid before the operation that is quantized."""
    operation = quantize.args[0]
    assert isinstance(operation, torch.fx.Node)
    if operation.target in _TAKEN_IN:
        return _is_taken_in(quantize, operation, _TAKEN_IN[operation.target])
    if operation.target not in _KEEPING_VALUES:
        return False
    before = operation.args[0]
    assert isinstance(before, torch.fx.Node)
    sizes = [math.prod(n.meta["val"].shape[1:]) for n in (before, operation)]
    return (
        before.target is quantized.dequantize_per_tensor.default
        and before.args[1:] == quantize.args[1:]
        and sizes[0] == sizes[1]
    )


def _is_taken_in(quantize: torch.fx.Node, operation: torch.fx.Node, into: object) -> bool:
    before = operation.args[0]
    assert isinstance(before, torch.fx.Node)
    readers = [user for read in quantize.users for user in read.users]
    return (
        before.target is quantized.dequantize_per_tensor.default
        and before.args[1:] == quantize.args[1:]
        and all(reader.target is into for reader in readers)
    )


def scales_exact(program: torch.export.ExportedProgram, facts: FileFacts) -> ScalesExact | None:
    """How many learned scales and weights a file holds bit for bit; None for a float program.

    Every activation grid counts once, looked up by the layer's name, and every channel's weight
    scale. A tensor on a grid that was never learned counts as one that is not the same.
    """
    layers, weights = learned_scales(program)
    if not layers:
        return None
    learned = set(layers.values())
    foreign = [n for n, grid in facts.layers.items() if n not in layers and grid not in learned]
    same_weights = sum(len(w) * n for w, n in (weights & facts.weights).items())
    codes = learned_codes(program)
    return ScalesExact(
        same=sum(facts.layers.get(n) == grid for n, grid in layers.items()) + same_weights,
        total=len(layers) + len(foreign) + sum(len(w) * n for w, n in weights.items()),
        codes_same=_numbers(codes & facts.codes),
        codes_total=_numbers(codes),
    )


def _numbers(codes: Counter[Codes]) -> int:
    return sum(one.numbers * count for one, count in codes.items())
