"""Adaptive rounding of weights of few bits, from calibration images alone.

    round_all_adaptively(graph, batches)

Weights are rounded one input after the other, and what a rounding changes in the layer's answers is
made good by those that are not rounded yet, as far as they can (Frantar et al. 2022, "GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers",
https://arxiv.org/abs/2210.17323, algorithm 1, which takes the solution of Hassibi and Stork's
Optimal Brain Surgeon). What the answers depend on is the products of inputs with one another,
summed over images and places: the matrix `H = X X^T`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from pipeline.base.profile import span
from pipeline.compress.quantization import grid
from pipeline.compress.quantization.few_bits import (
    FewBits,
    PaletteFakeQuantize,
    SteppedFakeQuantize,
    WeightedLayer,
    few_bit_layers,
)
from pipeline.compress.quantization.palettes import with_zero
from pipeline.compress.quantization.quantizer import CONVOLUTIONS
from pipeline.recipe.weight_forms import INT4_QMAX

_PLACES = 64
"""Places of an image that are taken of each layer at most: neighbours see nearly the same."""
_DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: inputs that are hardly ever there."""
_MOST_NUMBERS = 2**27
"""Of the matrices H that are held at a time: half a gigabyte."""
_BLOCK = 128
"""Columns after which the others are brought up to date, all at once."""


@span("evaluate", "adaptive rounding")
def round_all_adaptively(graph: fx.GraphModule, batches: Callable[[], Iterable[Tensor]]) -> None:
    """Round the weights of few bits of a graph, in place; others stay.

    Args:
        graph: calibrated, with few-bit layers (`few_bits.take_forms`); in evaluation mode.
        batches: calibration images.
    """
    for some in _that_fit(few_bit_layers(graph)):
        inputs = LayerInputs(graph, [layer for layer, _ in some])
        with torch.no_grad():
            for images in batches():
                inputs.run(images)
            for layer, module in some:
                layer.weight.copy_(round_adaptively(layer, module, inputs.products(layer)))
                if isinstance(module, PaletteFakeQuantize):
                    module.keep_step()


def _that_fit(
    layers: Sequence[tuple[WeightedLayer, FewBits]],
) -> Iterator[list[tuple[WeightedLayer, FewBits]]]:
    """Layers in their order, as many at a time as their matrices fit into memory."""
    some: list[tuple[WeightedLayer, FewBits]] = []
    room = _MOST_NUMBERS
    for layer, module in layers:
        groups, inputs = layer.groups, layer.weight[0].numel()
        if some and room < groups * inputs**2:
            yield some
            some, room = [], _MOST_NUMBERS
        some.append((layer, module))
        room -= groups * inputs**2
    if some:
        yield some


class LayerInputs(fx.Interpreter):
    """Runs a graph and sums up, for layers of it, the products of their inputs with one another.

    The graph computes as it is switched; see `qat.without_rounding`.
    """

    def __init__(self, graph: fx.GraphModule, layers: Sequence[WeightedLayer]) -> None:
        super().__init__(graph)
        self._layers = {conv.name: layer for layer in layers for conv in layer.convolutions}
        self._products: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Compute a node, and take its input where it is one of the layers."""
        if node.target in CONVOLUTIONS and node.name in self._layers:
            args, _ = self.fetch_args_kwargs_from_env(node)
            columns = input_columns(*args)
            found = columns @ columns.mT
            name = self._layers[node.name].name
            self._products[name] = self._products[name] + found if name in self._products else found
        return super().run_node(node)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module; the interpreter's own table leaves out the second name of one that has two."""
        return self.fetch_attr(target)(*args, **kwargs)

    def products(self, layer: WeightedLayer) -> Tensor:
        """H of a layer: float32 (groups, inputs, inputs)."""
        return self._products[layer.name]


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


def round_adaptively(layer: WeightedLayer, module: FewBits, products: Tensor) -> Tensor:
    """The weights of a layer on the grid that `module` rounds to, rounded one by one.

    Args:
        layer: whose weights are rounded; they are not changed.
        module: of few bits, with steps or palette as they are.
        products: H of the layer's inputs, (groups, inputs, inputs).

    Returns:
        Weights of the same shape; `module` rounds each to itself.
    """
    groups = len(products)
    rows = layer.weight.detach().float().reshape(groups, -1, products.shape[-1])
    steps, values = _grid(layer.weight, module)
    steps = steps.reshape(groups, -1)
    order = products.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    rows = rows.gather(2, order[:, None].expand_as(rows))
    sorted_products = products.gather(1, order[:, :, None].expand_as(products))
    sorted_products = sorted_products.gather(2, order[:, None].expand_as(products))
    rounded = _one_by_one(rows, _inverse_root(sorted_products), steps, values)
    result = torch.empty_like(rounded)
    result.scatter_(2, order[:, None].expand_as(rounded), rounded)
    return result.reshape(layer.weight.shape).to(layer.weight.dtype)


def _grid(weight: Tensor, module: FewBits) -> tuple[Tensor, Tensor]:
    """Steps, one per output channel, and the whole numbers of them that there are, ascending."""
    if isinstance(module, SteppedFakeQuantize):
        return module.step.detach().float(), torch.arange(-INT4_QMAX, INT4_QMAX + 1.0)
    values = with_zero(module.palette.detach() * grid.WEIGHT_QMAX).sort().values
    module.step.copy_(grid.largest_weights(weight) / grid.WEIGHT_QMAX)
    return module.step, values


def _inverse_root(products: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of H, damped: (groups, inputs, inputs)."""
    diagonal = products.diagonal(dim1=1, dim2=2)
    damping = _DAMPING * diagonal.mean(1, keepdim=True)
    # An input that was never anything but zero: its weights count for nothing.
    damping = damping.clamp(min=torch.finfo(torch.float32).tiny) + (diagonal == 0)
    damped = products.double() + torch.diag_embed(damping.double())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
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
