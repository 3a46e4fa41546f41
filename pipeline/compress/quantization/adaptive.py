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

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline.base.profile import span
from pipeline.compress.quantization import grid
from pipeline.compress.quantization.bias_correction import place_of_mean
from pipeline.compress.quantization.few_bits import (
    FewBits,
    PaletteFakeQuantize,
    SteppedFakeQuantize,
    WeightedLayer,
    few_bit_layers,
    nearest_steps,
)
from pipeline.compress.quantization.fold import attribute
from pipeline.compress.quantization.palettes import with_zero
from pipeline.recipe.weight_forms import INT4_QMAX

_PLACES = 64
"""Places of an image that are taken of each layer at most: neighbours see nearly the same."""
_MOST_NUMBERS = 2**29
"""Of the calibration images' tensors that are held at a time, by estimate: two gigabytes."""
_DAMPING = 0.01
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
        # Weights are rounded once more when it is known how.
        again = {source for conv in layers for source in conv.args[1].all_input_nodes}  # type: ignore[union-attr]
        both = _SideBySide(graph, _that_fit(graph, batches()), again)
        for node in graph.graph.nodes:
            if node in layers:
                layer, module = layers[node]
                exact, rounded = both.inputs(node)
                layer.weight.copy_(round_adaptively(layer, module, exact, rounded))
                if isinstance(module, PaletteFakeQuantize):
                    module.keep_step()
                both.compute(node.args[1])
            both.compute(node)
            if node in layers:
                place, sign = place_of_mean(node)
                if place is not None:
                    added = sign * both.shift(node)
                    attribute(graph, place).add_(added)
                    moved[str(place.target)] = added
                    both.compute(node)
            both.forget(node)
    return moved


def _that_fit(graph: fx.GraphModule, batches: Iterable[Tensor]) -> list[Tensor]:
    """As many of the batches as their tensors fit into memory; at least one."""
    values = [node.meta.get("val") for node in graph.graph.nodes if _is_of_images(node)]
    largest = max((v[0].numel() for v in values if isinstance(v, Tensor)), default=1)
    some: list[Tensor] = []
    images = 0
    for batch in batches:
        if some and (images + len(batch)) * largest * 4 > _MOST_NUMBERS:
            break
        some.append(batch)
        images += len(batch)
    return some


def _is_of_images(node: fx.Node) -> bool:
    value = node.meta.get("val")
    many = not isinstance(value, Tensor) or value.dim() > 1
    return many and node.op in {"call_function", "call_module", "placeholder"}


class _SideBySide:
    """A graph computed as the float network and rounded, node by node, on several batches.

    Args:
        graph: of the batches.
        batches: of images.
        kept: nodes that will be read again.
    """

    def __init__(
        self, graph: fx.GraphModule, batches: Sequence[Tensor], kept: Set[fx.Node]
    ) -> None:
        self._graph = graph
        self._batches = batches
        self._kept = kept
        self._found: dict[fx.Node, tuple[list[Any], list[Any]]] = {}
        self._left = {node: len(node.users) for node in graph.graph.nodes}
        # First of all: the float network's weights and statistics are those of before.
        for node in graph.graph.find_nodes(op="get_attr"):
            value = attribute(graph, node)
            self._found[node] = ([value.clone()] * len(batches), [value] * len(batches))

    def compute(self, node: fx.Node) -> None:
        """Compute a node, whose arguments are there."""
        number = len(self._batches)
        if node.op == "placeholder":
            self._found[node] = (list(self._batches), list(self._batches))
        elif node.op not in {"get_attr", "output"}:
            exact, rounded = (
                [self._value(node, side, batch) for batch in range(number)] for side in (0, 1)
            )
            self._found[node] = (exact, rounded)

    def _value(self, node: fx.Node, side: int, batch: int) -> Any:
        given = fx.map_arg(node.args, lambda one: self._found[one][side][batch])
        named = fx.map_arg(node.kwargs, lambda one: self._found[one][side][batch])
        if node.op == "call_function":
            return node.target(*given, **named)  # type: ignore[operator]
        module: Any = self._graph.get_submodule(str(node.target))
        if not isinstance(module, FakeQuantizeBase):
            return module(*given, **named)
        if side == 0:
            return given[0]
        before = module.fake_quant_enabled.clone(), module.observer_enabled.clone()
        module.enable_fake_quant(True)
        module.enable_observer(False)
        value = module(*given)
        module.fake_quant_enabled.copy_(before[0])
        module.observer_enabled.copy_(before[1])
        return value

    def inputs(self, conv: fx.Node) -> tuple[Tensor, Tensor]:
        """What a convolution multiplies its weights by, exact and rounded; see `input_columns`."""

        def columns(side: int, batch: int) -> Tensor:
            given: Any = fx.map_arg(conv.args, lambda one: self._found[one][side][batch])
            return input_columns(*given)

        numbers = range(len(self._batches))
        exact, rounded = (torch.cat([columns(side, n) for n in numbers], 2) for side in (0, 1))
        return exact, rounded

    def shift(self, node: fx.Node) -> Tensor:
        """By how much the mean of every channel is larger rounded than exact."""
        exact, rounded = (
            torch.cat([value.mean((2, 3)) for value in side]).mean(0) for side in self._found[node]
        )
        return rounded - exact

    def forget(self, node: fx.Node) -> None:
        """Let go of what no node will read any more, once `node` was computed for good."""
        for source in node.all_input_nodes:
            self._left[source] -= 1
            if self._left[source] == 0 and source not in self._kept:
                del self._found[source]


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
    layer: WeightedLayer, module: FewBits, exact: Tensor, rounded: Tensor
) -> Tensor:
    """The weights of a layer on the grid that `module` rounds to, rounded one by one.

    Args:
        layer: whose weights are rounded; they are not changed.
        module: of few bits; its steps become those of the least error for these inputs.
        exact: inputs of the float network, from `input_columns`.
        rounded: the same of the rounded network.

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
    steps, values = _grid(moved, module, products.diagonal(dim1=1, dim2=2))
    order = products.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    rows = rows.gather(2, order[:, None].expand_as(rows))
    products = products.gather(1, order[:, :, None].expand_as(products))
    products = products.gather(2, order[:, None].expand_as(products))
    found = _one_by_one(rows, _inverse_root(products), steps.reshape(groups, -1), values)
    result = torch.empty_like(found)
    result.scatter_(2, order[:, None].expand_as(found), found)
    return result.reshape(layer.weight.shape).to(layer.weight.dtype)


def _grid(weight: Tensor, module: FewBits, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Steps, one per output channel, and the whole numbers of them that there are, ascending."""
    if isinstance(module, SteppedFakeQuantize):
        groups = len(importance)
        each = importance.repeat_interleave(len(weight) // groups, 0)
        steps = nearest_steps(weight, importance=each)
        module.step.copy_(steps)
        return steps, torch.arange(-INT4_QMAX, INT4_QMAX + 1.0)
    values = with_zero(module.palette.detach() * grid.WEIGHT_QMAX).sort().values
    return module.step, values


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


def _one_by_one(rows: Tensor, root: Tensor, steps: Tensor, values: Tensor) -> Tensor:
    """Rows rounded to `values` times their steps, column by column.

    Args:
        rows: weights (groups, rows, inputs).
        root: from `_inverse_root`.
        steps: (groups, rows).
        values: ascending.
    """
    rows, rounded = rows.clone(), torch.empty_like(rows)
    middles = (values[1:] + values[:-1]) / 2
    number = rows.shape[2]
    for begin in range(0, number, _BLOCK):
        end = min(begin + _BLOCK, number)
        errors = torch.zeros_like(rows[:, :, begin:end])
        for place in range(begin, end):
            wanted = rows[:, :, place]
            found = values[torch.bucketize(wanted / steps, middles)] * steps
            rounded[:, :, place] = found
            error = (wanted - found) / root[:, place, place, None]
            rows[:, :, place:end] -= error[:, :, None] * root[:, None, place, place:end]
            errors[:, :, place - begin] = error
        rows[:, :, end:] -= errors @ root[:, begin:end, end:]
    return rounded
