"""Fake quantization of weights to fewer than 8 bits.

    int4        whole numbers -7..7 of steps that are learned, one step per output channel
    int4_blocks the same of a step that is a multiple of the channel's, by block of inputs
    palette16   one of 16 values of the int8 grid, the same for a whole layer and learned
    palette64   one of 64

Either way the weights are int8 numbers with few different values among them: the program and its
kernels stay those of int8, and a file stores the numbers in fewer bits where its format can.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.compress.quantization import grid
from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize
from pipeline.compress.quantization.fold import attribute, source_weight
from pipeline.compress.quantization.palettes import nearest_palette, with_zero
from pipeline.compress.quantization.quantizer import CONVOLUTIONS
from pipeline.compress.quantization.steps import (
    BlockedFakeQuantize,
    SteppedFakeQuantize,
    as_scale,
    magnitude,
    store_rounded,
    take_switches,
)
from pipeline.networks.lowering.places import module_paths
from pipeline.recipe.weight_forms import PALETTES, WeightForm


class _RoundToPalette(torch.autograd.Function):
    """Weights to the nearest value of a palette.

    The gradient goes straight through to the weights; each value's is the sum over the weights
    that have it.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, learned: Tensor, step: Tensor) -> Tensor:
        """`weight` rounded to values of the palette `learned` (1 is 127) times `step`."""
        by_channel = step.reshape(-1, *[1] * (weight.dim() - 1))
        values, order = with_zero(learned.detach() * grid.WEIGHT_QMAX).sort()
        middles = (values[1:] + values[:-1]) / 2
        index = torch.bucketize(weight / by_channel, middles)
        ctx.save_for_backward(index, order, by_channel)
        return values[index] * by_channel

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of the weights, and of the palette."""
        index, order, by_channel = ctx.saved_tensors
        of_value = gradients[0] * by_channel * grid.WEIGHT_QMAX
        summed = of_value.new_zeros(len(order)).index_add_(0, index.flatten(), of_value.flatten())
        learned = torch.zeros_like(summed)
        learned[order] = summed / math.sqrt(index.numel() / len(order) * grid.WEIGHT_QMAX)
        return gradients[0], learned, None


class PaletteFakeQuantize(WeightFakeQuantize):
    """One of a few values of int8, which are learned with the weights, times a channel's scale."""

    def __init__(self, weight: Tensor, enabled: WeightFakeQuantize, form: WeightForm) -> None:
        super().__init__()
        take_switches(self, enabled)
        self.form = form
        each = grid.scales_of_largest(grid.largest_weights(weight))
        found = nearest_palette(weight, each, PALETTES[form])
        # Weights that were shared by a layer before have few values with one step for all.
        alike = nearest_palette(weight, each.amax().expand_as(each), PALETTES[form])
        self.register_buffer("shares_step", torch.tensor(alike.error < found.error))
        self.register_buffer("keeps_step", torch.tensor(False))
        self.register_buffer("step", self._steps(weight))
        palette = (alike if self.shares_step else found).values
        self.palette = nn.Parameter(palette / grid.WEIGHT_QMAX)
        self.scale = torch.ones_like(each)

    def _steps(self, weight: Tensor) -> Tensor:
        """What 1 is in the palette's whole numbers, by channel: 127 of them are the largest."""
        largest = grid.largest_weights(weight)
        if self.shares_step:
            largest = largest.amax().expand_as(largest)
        return largest / grid.WEIGHT_QMAX

    def forward(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """Round `weight` to the palette; as `WeightFakeQuantize.forward`."""
        if not self.keeps_step:
            self.step.copy_(self._steps(weight))
        factor = magnitude(factor, self.step)
        self.scale.copy_(as_scale(self.step * factor))
        if self.fake_quant_enabled[0] == 1:
            rounded = _RoundToPalette.apply(weight, self.palette, self.scale / factor)  # type: ignore[no-untyped-call]
            return rounded  # type: ignore[no-any-return]
        return weight

    def folded(self, factor: Tensor) -> None:
        """Be told that the weights were multiplied by `factor`: so are their steps."""
        self.step.mul_(factor.abs())

    def raise_to(self, weight: Tensor, smallest: Tensor) -> None:
        """Let no scale be smaller than `smallest`, one per output channel."""
        if self.keeps_step:
            self.step.copy_(torch.maximum(self.step, smallest))
        else:
            super().raise_to(weight, smallest)

    def store(self, weight: Tensor) -> None:
        """Change weights in place to the rounded ones, which are rounded to themselves again."""
        store_rounded(self, weight)
        self.keep_step()

    def keep_step(self) -> None:
        """Let steps stay though the largest weight of a channel may not be 127 of them any more."""
        self.keeps_step.fill_(True)


FewBits = SteppedFakeQuantize | PaletteFakeQuantize


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedLayer:
    """A layer of a graph whose weights are rounded, with all convolutions that read them.

    Attributes:
        name: path of the module; with the operation's name where that alone tells layers apart.
        roundings: names in the graph of the module that rounds the weights.
        module: it.
        weight: the stored weights, before batch normalisation is folded: (out channels, ...).
        convolutions: the nodes.
    """

    name: str
    roundings: tuple[str, ...]
    module: WeightFakeQuantize
    weight: Tensor
    convolutions: tuple[fx.Node, ...]

    @property
    def takes_fewer(self) -> bool:
        """Whether it can have another form than int8."""
        return len(self.convolutions) == 1


def weighted_layers(graph: fx.GraphModule) -> list[WeightedLayer]:
    """The layers of a graph from `qat.prepare` whose weights are rounded, in order.

    What rounds the weights of several convolutions makes one layer of them. Each of these may have
    a batch normalisation of its own, so that no form but int8 suits them all.
    """
    found: dict[WeightFakeQuantize, list[fx.Node]] = {}
    for conv in [n for n in graph.graph.nodes if n.target in CONVOLUTIONS]:
        rounding = conv.args[1]
        if rounding.op == "call_module":
            module = graph.get_submodule(str(rounding.target))
            assert isinstance(module, WeightFakeQuantize)
            found.setdefault(module, []).append(conv)
    paths = {conv: module_paths(conv)[-1:] for nodes in found.values() for conv in nodes}
    several = Counter(path for nodes in found.values() for path in {paths[nodes[0]]})

    def name(conv: fx.Node) -> str:
        # What a module computes with several weights of its own goes by the operations.
        alone = paths[conv] and several[paths[conv]] == 1
        return paths[conv][0] if alone else ".".join([*paths[conv], conv.name])

    return [_layer(graph, name(nodes[0]), module, nodes) for module, nodes in found.items()]


def _layer(
    graph: fx.GraphModule, name: str, module: WeightFakeQuantize, nodes: list[Any]
) -> WeightedLayer:
    return WeightedLayer(
        name=name,
        roundings=tuple(dict.fromkeys(str(node.args[1].target) for node in nodes)),
        module=module,
        weight=attribute(graph, source_weight(nodes[0].args[1])),
        convolutions=tuple(nodes),
    )


def take_forms(graph: fx.GraphModule, forms: Mapping[str, WeightForm]) -> None:
    """Give layers of a graph from `qat.prepare` weights of fewer bits, in place.

    Args:
        graph: whose weights are as they are to be rounded at first.
        forms: by layer, as `weighted_layers` names them; the others keep int8.
    """
    for layer in weighted_layers(graph):
        form = forms.get(layer.name, "int8")
        if form != "int8" and layer.takes_fewer:
            made = rounding_of(layer.weight.float(), form, layer.module)
            for name in layer.roundings:
                graph.set_submodule(name, made)


def rounding_of(weight: Tensor, form: WeightForm, before: WeightFakeQuantize) -> FewBits:
    """What rounds weights to `form`, in place of `before`, whose switches it takes."""
    if form == "int4":
        return SteppedFakeQuantize(weight, before)
    if form == "int4_blocks":
        return BlockedFakeQuantize(weight, before)
    return PaletteFakeQuantize(weight, before, form)


def is_pointwise(conv: fx.Node) -> bool:
    """Whether a convolution is a product of a matrix and a vector: of an image of one pixel."""
    given: Any = conv.args
    weight = given[1]
    while weight.op == "call_module":
        weight = weight.args[0]
    one_pixel = {*weight.meta["val"].shape[2:], *conv.meta["val"].shape[2:]} == {1}
    stride = given[3] if len(given) > 3 else [1, 1]
    groups = given[6] if len(given) > 6 else 1
    return one_pixel and set(stride) == {1} and groups == 1


def few_bit_layers(graph: fx.GraphModule) -> list[tuple[WeightedLayer, FewBits]]:
    """The layers of fewer bits than 8, with what rounds them."""
    layers = [(layer, layer.module) for layer in weighted_layers(graph)]
    return [(layer, module) for layer, module in layers if isinstance(module, FewBits)]
