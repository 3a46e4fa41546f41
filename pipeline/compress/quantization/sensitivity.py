"""What each layer's weights cost in each form, from one pass over calibration images.

The cost is by how much the network's answers move: the Kullback-Leibler divergence of what it
answers with the layer's weights rounded from what it answers without, in nats an image. To second
order that is half of the mean of `(g e)^2`, with `e` what the rounding changes in the layer's
output, and `g` the gradient of the logarithm of the probability of an answer that is drawn from the
network's own: the Fisher information is the divergence's second derivative (Martens 2020, "New
Insights and Perspectives on the Natural Gradient Method", https://arxiv.org/abs/1412.1193,
section 5). So one pass forward and one back serve all layers and all forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from pipeline.compress.quantization.few_bits import WeightedLayer
from pipeline.compress.quantization.interpreter import Interpreter
from pipeline.compress.quantization.quantizer import CONVOLUTIONS
from pipeline.recipe.task import Link
from pipeline.recipe.weight_forms import WeightForm

Moves = Mapping[str, Mapping[WeightForm, Tensor]]
"""What rounding adds to the weights, by layer and form."""
Costs = dict[str, dict[WeightForm, float]]
"""Divergence in nats an image, by layer and form."""

MOST_IMAGES = 256
"""More tell hardly more: the cost is a mean over them, of squares."""
_MOST_NUMBERS = 2**27
"""Of the tensors that are held at a time: half a gigabyte, and as much for their gradients."""


def costs(
    graph: fx.GraphModule,
    layers: Sequence[WeightedLayer],
    moves: Moves,
    batches: Callable[[], Iterable[Tensor]],
    link: Link,
    seed: int = 0,
) -> Costs:
    """The divergence that each form of each layer's weights costs.

    Args:
        graph: that computes as the float network does; see `qat.without_rounding`.
        layers: of it.
        moves: by the layer's name.
        batches: calibration images, some at a time; at most 256 of them are looked at.
        link: what makes probabilities of the network's answers.
        seed: of the answers that are drawn.
    """
    sums: Costs = {layer.name: dict.fromkeys(moves[layer.name], 0.0) for layer in layers}
    generator = torch.Generator().manual_seed(seed)
    images = 0
    for batch in _parts(graph, batches()):
        images += len(batch)
        with torch.enable_grad():
            seen = _Seen(graph, layers)
            loss = _surprise(seen.run(batch), link, generator)
            outputs = [output for _, _, output in seen.found]
            gradients = torch.autograd.grad(loss, outputs)
        for (layer, args, _), gradient in zip(seen.found, gradients, strict=True):
            for form, move in moves[layer.name].items():
                moved = _convolved(args, move)
                each = (moved * gradient).flatten(1).sum(1).double()
                sums[layer.name][form] += float(each.square().sum())
    return {
        name: {form: total / (2 * images) for form, total in forms.items()}
        for name, forms in sums.items()
    }


def _parts(graph: fx.GraphModule, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The first images, as many at a time as all their tensors fit into memory."""
    values = [n.meta.get("val") for n in graph.graph.nodes if n.op == "call_function"]
    numbers = sum(v[0].numel() for v in values if isinstance(v, Tensor) and v.dim() > 1)
    most, left = max(1, _MOST_NUMBERS // max(numbers, 1)), MOST_IMAGES
    for batch in batches:
        yield from torch.split(batch[:left], most)
        left -= len(batch)
        if left <= 0:
            break


def divergence(before: Tensor, after: Tensor, link: Link) -> float:
    """The Kullback-Leibler divergence of answers from others, in nats an image.

    Of several labels an image, the sum over them: each is a choice of two by itself.

    Args:
        before: logits (images, classes); of maps (images, classes, h, w) the sum over all places.
        after: of the same images.
        link: what makes probabilities of them.
    """
    images = len(before)
    before, after = (_by_place(one.double(), link) for one in (before, after))
    if link == "softmax":
        logarithms = [(before.log_softmax(1), after.log_softmax(1))]
    else:
        logarithms = [(F.logsigmoid(s * before), F.logsigmoid(s * after)) for s in (1, -1)]
    total = sum((p.exp() * (p - q)).sum() for p, q in logarithms)
    return max(0.0, float(total) / images)


class _Seen(Interpreter):
    """Runs a graph and keeps what its layers are given and give.

    Attributes:
        found: a layer, the arguments of its convolution without the gradient, and the output.
    """

    def __init__(self, graph: fx.GraphModule, layers: Sequence[WeightedLayer]) -> None:
        super().__init__(graph)
        self._layers = {conv.name: layer for layer in layers for conv in layer.convolutions}
        self.found: list[tuple[WeightedLayer, tuple[Any, ...], Tensor]] = []

    def run_node(self, node: fx.Node) -> Any:
        """Compute a node, and keep it where it is one of the layers'."""
        result = super().run_node(node)
        if node.target in CONVOLUTIONS and node.name in self._layers:
            args, _ = self.fetch_args_kwargs_from_env(node)
            args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
            self.found.append((self._layers[node.name], args, result))
        return result


def _by_place(logits: Tensor, link: Link) -> Tensor:
    """Logits (places, classes) of maps, whose softmax is taken at every place; others as they are.

    before: (images, classes, height, width)
    after:  (images * height * width, classes)
    """
    if link != "softmax" or logits.dim() != 4:
        return logits
    return logits.movedim(1, -1).flatten(0, -2)


def _surprise(logits: Tensor, link: Link, generator: torch.Generator) -> Tensor:
    """Minus the logarithm of the probability of answers that are drawn, summed over images."""
    logits = _by_place(logits, link)
    with torch.no_grad():
        if link == "softmax":
            drawn = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
        else:
            drawn = torch.bernoulli(logits.sigmoid(), generator=generator)
    if link == "softmax":
        return F.cross_entropy(logits, drawn, reduction="sum")
    return F.binary_cross_entropy_with_logits(logits, drawn, reduction="sum")


def _convolved(args: tuple[Any, ...], weight: Tensor) -> Tensor:
    """A convolution of the same image with other weights and no bias."""
    images, _, *rest = args
    given = rest[1:]
    result: Tensor = F.conv2d(images, weight, None, *given)
    return result
