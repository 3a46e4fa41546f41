"""Bias correction: what the rounding of weights does to the mean of a channel is taken off.

    with_means = InputMeans(graph)
    with_means.run(images)
    moved = correct_biases(graph, with_means)

A channel's rounded weights are off by `e`, so what they give is off by `e x`: on average by `e`
times the mean of its input, which calibration images show (Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", https://arxiv.org/abs/1906.04721,
section 4.2). Where many weights read numbers that are never negative, as behind a ReLU, that adds
up. Rounding of activations moves no mean, and is left alone: comparing the outputs themselves would
take its noise for a shift.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize
from pipeline.compress.quantization.fold import attribute, readers_of, source_weight
from pipeline.compress.quantization.interpreter import Interpreter
from pipeline.compress.quantization.quantizer import CONVOLUTIONS

aten = torch.ops.aten
_MEAN = 3
"""Place of the running mean among the arguments of a batch normalisation."""


class InputMeans(Interpreter):
    """Runs a graph and keeps, for every convolution, the mean image that it reads.

    Attributes:
        weights: what each rounding of weights was given at first, by the node's name; copies.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.weights: dict[str, tuple[Tensor, ...]] = {}
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As the graph itself, for (images, channels, height, width)."""
        self._images += len(args[0])
        return super().run(*args, **kwargs)

    def run_node(self, node: fx.Node) -> Any:
        """Compute a node, and keep what it was given."""
        args, _ = self.fetch_args_kwargs_from_env(node)
        if node.target in CONVOLUTIONS:
            total = args[0].double().sum(0)
            self._sums[node.name] = self._sums.get(node.name, 0.0) + total
        elif node.op == "call_module":
            module = self.fetch_attr(str(node.target))
            if isinstance(module, WeightFakeQuantize) and node.name not in self.weights:
                self.weights[node.name] = (args[0].clone(), *args[1:])
        return super().run_node(node)

    def mean(self, conv: fx.Node) -> Tensor:
        """The mean image that a convolution reads, float32 (1, channels, height, width)."""
        return (self._sums[conv.name] / self._images).float()[None]


def correct_biases(
    graph: fx.GraphModule, means: InputMeans, done: Collection[str] = ()
) -> dict[str, Tensor]:
    """Take the mean error of every convolution's rounded weights off its bias, in place.

    With a batch normalisation of its own, it goes to the running mean, which training takes anew
    from the rounded weights anyway. A convolution with neither stays as it is.

    Args:
        graph: from `qat.prepare`, calibrated, in evaluation mode.
        means: of the calibration images.
        done: names of tensors that were corrected otherwise, and stay.

    Returns:
        What was added to each of these tensors, by the name it has in the graph's state.
    """
    moved: dict[str, Tensor] = {}
    for conv in [n for n in graph.graph.nodes if n.target in CONVOLUTIONS]:
        place, sign = place_of_mean(conv)
        rounding = conv.args[1]
        if place is None or str(place.target) in done or rounding.name not in means.weights:
            continue
        with torch.no_grad():
            error = _rounded(graph, rounding, means) - means.weights[rounding.name][0]
            image = means.mean(conv)
            added = sign * conv.target(image, error, None, *conv.args[3:]).mean((0, 2, 3))
            attribute(graph, place).add_(added)
        moved[str(place.target)] = added
    return moved


def _rounded(graph: fx.GraphModule, rounding: fx.Node, means: InputMeans) -> Tensor:
    """The weights as the node `rounding` rounds them."""
    module: Any = graph.get_submodule(str(rounding.target))
    assert isinstance(module, FakeQuantizeBase)
    before = module.fake_quant_enabled.clone()
    module.enable_fake_quant(True)
    # Adaptive rounding may have changed the weights since.
    now = attribute(graph, source_weight(rounding))
    weight: Tensor = module(now, *means.weights[rounding.name][1:])
    module.fake_quant_enabled.copy_(before)
    return weight


def place_of_mean(conv: fx.Node) -> tuple[fx.Node | None, int]:
    """What a convolution's mean is taken off at, and whether by adding the error there or not."""
    given: Any = conv.args
    readers = list(conv.users)
    if len(readers) == 1 and readers[0].target is aten.batch_norm.default:
        found, sign = readers[0].args[_MEAN], 1
    else:
        found, sign = (given[2] if len(given) > 2 else None), -1
    alone = isinstance(found, fx.Node) and len(readers_of(found)) == 1
    return (found if alone else None), sign  # type: ignore[return-value]
