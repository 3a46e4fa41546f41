"""Adaptive rounding of weights of few bits, from calibration images alone.

    moved = round_all_adaptively(graph, batches)

The graph is computed twice side by side, node by node, as the float network and rounded. At each
layer weights are rounded one input after the other, and what a rounding changes in the layer's
answers is made good by those that are not rounded yet, as far as they can (Frantar et al. 2022,
"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
https://arxiv.org/abs/2210.17323, algorithm 1, which takes the solution of Hassibi and Stork's
Optimal Brain Surgeon). What the answers depend on is the products of inputs with one another,
summed over images and places: the matrix `H = X X^T`, of the rounded network's inputs `X`. Before,
the weights `W` are moved to where these inputs give what those of the float network `Z` do, by
least squares: `W + W (Z - X) X^T H^-1`; so a layer makes good what those before it have changed.
What is left of the mean of every channel goes to its bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from pipeline.base.profile import span
from pipeline.compress.quantization import blocks, grid
from pipeline.compress.quantization.bias_correction import place_of_mean
from pipeline.compress.quantization.few_bits import (
    FewBits,
    WeightedLayer,
    few_bit_layers,
)
from pipeline.compress.quantization.fold import attribute
from pipeline.compress.quantization.palettes import with_zero
from pipeline.compress.quantization.side_by_side import (
    EXACT,
    ROUNDED,
    SideBySide,
)
from pipeline.compress.quantization.steps import (
    BlockedFakeQuantize,
    SteppedFakeQuantize,
    nearest_steps,
)
from pipeline.recipe.weight_forms import INT4_QMAX

_PLACES = 200
"""Places of an image that are taken of each layer at most: neighbours see nearly the same."""
_DAMPING = 0.02
"""Added to the diagonal of H, as a share of its mean: inputs that are hardly ever there."""
_BLOCK = 128
"""Columns after which the others are brought up to date, all at once."""


@span("evaluate", "adaptive rounding")
def round_all_adaptively(
    graph: fx.GraphModule, batches: Callable[[], Iterable[Tensor]]
) -> dict[str, Tensor]:
    """Round the weights of few bits of a graph, in place; others stay.

    Args:
        graph: calibrated, with layers of few bits (`few_bits.take_forms`); in evaluation mode.
        batches: calibration images.

    Returns:
        What was added to biases and running means, as `bias_correction.correct_biases` has it.
    """
    layers = {layer.convolutions[0]: (layer, module) for layer, module in few_bit_layers(graph)}
    moved: dict[str, Tensor] = {}
    with torch.no_grad():
        both = SideBySide(graph, batches())
        for number, node in enumerate(graph.graph.nodes):
            if node in layers or number == 0:
                both.take_more(node)
            if node in layers:
                layer, module = layers[node]
                columns = _columns(both, node)
                factor = _factor(both, node)
                layer.weight.copy_(round_adaptively(layer, module, *columns, factor))
                module.keep_step()
                both.compute(node.args[1])
            both.compute(node)
            place, sign = place_of_mean(node) if node in layers else (None, 1)
            if place is not None:
                added = sign * both.shift(node)
                attribute(graph, place).add_(added)
                moved[str(place.target)] = added
                both.compute(node)
            both.forget_before(node)
    return moved


def _factor(both: SideBySide, conv: fx.Node) -> Tensor | None:
    """What a convolution's weights will be multiplied by, as their rounding is told."""
    rounding: Any = conv.args[1]
    return both.found[rounding.args[1]][ROUNDED][0] if len(rounding.args) > 1 else None


def _columns(both: SideBySide, conv: fx.Node) -> tuple[Tensor, Tensor]:
    """What a convolution multiplies its weights by, exact and rounded; see `input_columns`."""

    def columns(side: int, batch: int) -> Tensor:
        given: Any = fx.map_arg(conv.args, both.given(conv, side, batch).__getitem__)
        return input_columns(*given)

    exact, rounded = (
        torch.cat([columns(side, batch) for batch in both.numbers], 2) for side in (EXACT, ROUNDED)
    )
    return exact, rounded


def input_columns(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """What a convolution multiplies its weights by, at some places of every image.

    Args:
        images: (batch, channels, height, width).
        weight: (out channels, channels / groups, height, width).
        bias: not looked at; the arguments are those of `conv2d`.
        stride: of the kernel.
        padding: zeros around an image, or `valid` or `same`.
        dilation: of the kernel.
        groups: of channels.

    Returns:
        (groups, inputs of a group, places), the inputs in the order of a channel's weights.
    """
    kernel = (int(weight.shape[2]), int(weight.shape[3]))
    images = F.pad(images, _margins(padding, kernel, dilation))
    columns = F.unfold(images, kernel, tuple(dilation), 0, tuple(stride))
    every = max(1, columns.shape[2] // _PLACES)
    columns = columns[:, :, :: every if every % 2 else every + 1]  # odd: no column of the image
    by_group = columns.reshape(len(columns), groups, -1, columns.shape[2])
    return by_group.permute(1, 2, 0, 3).flatten(2).float()


def _margins(
    padding: Sequence[int] | str, kernel: tuple[int, int], dilation: Sequence[int]
) -> list[int]:
    """Zeros left, right, above and below an image."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(padding, str):
        whole = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        height, width = whole
        return [width // 2, width - width // 2, height // 2, height - height // 2]
    return [padding[-1], padding[-1], padding[0], padding[0]]


def round_adaptively(
    layer: WeightedLayer,
    module: FewBits,
    exact: Tensor,
    rounded: Tensor,
    factor: Tensor | None = None,
) -> Tensor:
    """The weights of a layer on the grid that `module` rounds to, rounded one by one.

    Args:
        layer: whose weights are rounded; they are not changed.
        module: of few bits; its steps become those of the least error for these inputs.
        exact: inputs of the float network, from `input_columns`.
        rounded: the same of the rounded network.
        factor: of the output channels, that batch normalisation will multiply the weights by.

    Returns:
        Weights of the same shape; `module` rounds each to itself.
    """
    products = rounded @ rounded.mT
    groups = len(products)
    rows = layer.weight.detach().float().reshape(groups, -1, products.shape[-1])
    products = _damped(products)
    across = (exact - rounded) @ rounded.mT
    rows = rows + torch.linalg.solve(products, (rows @ across).mT).mT
    moved = rows.reshape(layer.weight.shape)
    steps, values = _grid(moved, module, products.diagonal(dim1=1, dim2=2), factor)
    order = products.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    steps = steps.reshape_as(rows)
    rows, steps = (each.gather(2, order[:, None].expand_as(each)) for each in (rows, steps))
    products = products.gather(1, order[:, :, None].expand_as(products))
    products = products.gather(2, order[:, None].expand_as(products))
    found = _one_by_one(rows, steps, _inverse_root(products), values)
    result = torch.empty_like(found)
    result.scatter_(2, order[:, None].expand_as(found), found)
    return result.reshape(layer.weight.shape).to(layer.weight.dtype)


def _grid(
    weight: Tensor, module: FewBits, importance: Tensor, factor: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The step of each weight, and the whole numbers of them that there are, ascending.

    Those of `module` become the ones of the least error.

    Args:
        weight: (out channels, channels of a group, height, width).
        module: that rounds it.
        importance: of the square of an input's error: (groups, inputs).
        factor: that the weights will be multiplied by, or None.
    """
    four_bits = torch.arange(-INT4_QMAX, INT4_QMAX + 1.0)
    each = importance.repeat_interleave(len(weight) // len(importance), 0)
    if isinstance(module, SteppedFakeQuantize):
        if isinstance(module, BlockedFakeQuantize):
            rows, counted = blocks.by_block(weight), blocks.by_block(each.reshape(weight.shape))
            wanted = nearest_steps(rows.flatten(0, 1), importance=counted.flatten(0, 1))
            module.take_steps(wanted.reshape(rows.shape[:2]))
        else:
            module.step.copy_(nearest_steps(weight, importance=each))
        steps = _by_channel(module.held_step(factor), weight) * module.multiples_for(weight)
        return steps.expand_as(weight), four_bits
    values = with_zero(module.palette.detach() * grid.WEIGHT_QMAX).sort().values
    return _by_channel(module.step, weight).expand_as(weight), values


def _by_channel(steps: Tensor, weight: Tensor) -> Tensor:
    return steps.reshape(-1, *[1] * (weight.dim() - 1))


def _damped(products: Tensor) -> Tensor:
    """H with a little more on its diagonal, so that it has an inverse."""
    diagonal = products.diagonal(dim1=1, dim2=2)
    damping = _DAMPING * diagonal.mean(1, keepdim=True)
    # An input that was never anything but zero: its weights count for nothing.
    damping = damping.clamp(min=torch.finfo(torch.float32).tiny) + (diagonal == 0)
    return products + torch.diag_embed(damping)


def _inverse_root(products: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of H: (groups, inputs, inputs)."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products.double()))
    root: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return root.float()


def _one_by_one(rows: Tensor, steps: Tensor, root: Tensor, values: Tensor) -> Tensor:
    """Rows rounded to `values` times their steps, column by column.

    Args:
        rows: weights (groups, rows, inputs).
        steps: of each.
        root: from `_inverse_root`.
        values: ascending.
    """
    rows, rounded = rows.clone(), torch.empty_like(rows)
    middles = (values[1:] + values[:-1]) / 2
    number = rows.shape[2]
    for begin in range(0, number, _BLOCK):
        end = min(begin + _BLOCK, number)
        errors = torch.zeros_like(rows[:, :, begin:end])
        for place in range(begin, end):
            wanted, step = rows[:, :, place], steps[:, :, place]
            found = values[torch.bucketize(wanted / step, middles)] * step
            rounded[:, :, place] = found
            error = (wanted - found) / root[:, place, place, None]
            rows[:, :, place:end] -= error[:, :, None] * root[:, None, place, place:end]
            errors[:, :, place - begin] = error
        rows[:, :, end:] -= errors @ root[:, begin:end, end:]
    return rounded
