"""Cross-layer equalization: the channels between two convolutions get ranges alike.

    equalize(graph, batches)

All channels of a tensor share one grid, so that one with a small range has few steps of it. Where
nothing but a ReLU, or nothing, lies between two convolutions, a channel may be divided by any
positive number and the weights that read it multiplied by the same: `relu(x / s) = relu(x) / s`.
The network computes what it did (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", https://arxiv.org/abs/1906.04721, section 4.1). There, `s` makes
the ranges of both layers' weights alike. Here every output channel has a scale of its own, so what
has to be alike are the range of the channel itself, as calibration images show it, and of the
weights that read it: `s = sqrt(range of the channel / largest weight that reads it)`.

Channels that stand beside others on their way, are shuffled, or are handed on as they are
(`joined_channels`) are scaled likewise, each by what all tensors and all weights show of it: what
is put side by side has one grid.

Left alone are channels that are clamped from above (ReLU6), since the clamp would have to be
another one for each, and those that anything else than a convolution reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.compress.quantization.fold import attribute, readers_of, source_weight
from pipeline.compress.quantization.joined_channels import (
    Channel,
    joined_channels,
    together,
    weight_of,
)
from pipeline.compress.quantization.quantizer import CONVOLUTIONS

aten = torch.ops.aten
_RELUS = {aten.relu.default, aten.relu_.default}
_LEAST = 1e-8
_MOST = 2.0**10
"""A channel is made this much larger or smaller at most, of those that hold anything."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Channels between convolutions that can be scaled.

    Attributes:
        made: what gives them: the parameters that are divided, weights (out channels, ...) and
            biases (out channels).
        rounding: the node that rounds them.
        read: the convolutions that read them.
    """

    made: tuple[fx.Node, ...]
    rounding: fx.Node
    read: tuple[fx.Node, ...]


def pairs(graph: fx.GraphModule) -> list[Pair]:
    """All channels of a prepared graph that can be equalized, in the order of computation."""
    found = [_pair(graph, node) for node in graph.graph.nodes if node.op == "call_module"]
    return [pair for pair in found if pair is not None]


def _pair(graph: fx.GraphModule, rounding: fx.Node) -> Pair | None:
    source: Any = rounding.args[0]
    if getattr(source, "target", None) in _RELUS and len(source.users) == 1:
        source = source.args[0]
    made = _parameters(source)
    readers = [user for user in rounding.users if user.target is not aten.sym_size.int]
    if not made or not readers or not all(_reads(reader, rounding) for reader in readers):
        return None
    weights = [source_weight(reader.args[1]) for reader in readers]  # type: ignore[arg-type]
    trained = all(_is_trained(graph, node) for node in (*made, *weights))
    return Pair(made=made, rounding=rounding, read=tuple(readers)) if trained else None


def _reads(reader: fx.Node, rounding: fx.Node) -> bool:
    """Whether a node is a convolution of these channels whose weights nothing else reads."""
    if reader.target not in CONVOLUTIONS or reader.args[0] is not rounding:
        return False
    return _alone(source_weight(reader.args[1]))  # type: ignore[arg-type]


def _parameters(node: Any) -> tuple[fx.Node, ...]:
    """What is divided for the channels of a node to be; none where that is not known, or shared.

    Those of the batch normalisation behind a convolution, or else of the convolution itself.
    """
    found: tuple[Any, ...] = ()
    if len(getattr(node, "users", ())) != 1:
        return ()
    if node.target is aten.batch_norm.default:
        conv, gamma, beta = node.args[:3]
        found = (gamma, beta) if conv.target in CONVOLUTIONS and len(conv.users) == 1 else ()
    elif node.target in CONVOLUTIONS:
        bias = node.args[2] if len(node.args) > 2 else None
        found = (source_weight(node.args[1]), *([] if bias is None else [bias]))
    return found if all(isinstance(one, fx.Node) and _alone(one) for one in found) else ()


def _alone(parameter: fx.Node) -> bool:
    """Whether one layer has a parameter; the rounding of weights may read a factor as well."""
    arithmetic = {aten.div.Tensor}
    return len([user for user in readers_of(parameter) if user.target not in arithmetic]) == 1


def _is_trained(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a parameter is one, and no constant of an exact rewrite."""
    return graph.get_parameter(str(node.target)).requires_grad


def equalize(graph: fx.GraphModule, batches: Callable[[], Iterable[Tensor]]) -> int:
    """Equalize all channels of a prepared graph that can be, in place; how many tensors.

    Args:
        graph: from `qat.prepare`, not calibrated, computing as the float network does
            (`qat.without_rounding`).
        batches: calibration images.
    """
    found = pairs(graph)
    images = next(iter(batches()))
    joined = [group for group in together(_joined(graph, found, images)) if len(group) > 1]
    with torch.no_grad():
        nodes = [pair.rounding for pair in found]
        nodes += dict.fromkeys(n for group in joined for one in group for n, _ in one.rounded)
        sizes = dict(zip(nodes, largest(graph, nodes, batches), strict=True))
        for pair in found:
            scale_channels(graph, pair, _factors(graph, pair, sizes[pair.rounding]))
        for group in joined:
            _scale_joined(graph, group, sizes)
    return len(found) + len(joined)


def _joined(graph: fx.GraphModule, found: list[Pair], images: Tensor) -> list[Channel]:
    """Channels that stand beside others on their way, and that may be scaled."""
    direct = {pair.rounding for pair in found}
    return [
        one
        for one in joined_channels(graph, images)
        if (made := _parameters(one.maker[0]))
        and not any(node in direct for node, _ in one.rounded)
        and all(_alone(weight_of(reader)) for reader, _ in one.read)
        and all(_is_trained(graph, n) for n in (*made, *(weight_of(r) for r, _ in one.read)))
    ]


def _scale_joined(
    graph: fx.GraphModule, group: list[Channel], sizes: dict[fx.Node, Tensor]
) -> None:
    """Divide each channel of a group by its factor, and multiply what reads it, in place."""
    shares = {r: _by_input(graph, r) for r in {r: None for one in group for r, _ in one.read}}
    channels = torch.stack(
        [torch.stack([sizes[node][at] for node, at in one.rounded]).amax() for one in group]
    )
    weights = torch.stack(
        [torch.stack([shares[reader][at] for reader, at in one.read]).amax() for one in group]
    )
    divided: dict[fx.Node, Tensor] = {}
    multiplied: dict[fx.Node, Tensor] = {}
    for one, factor in zip(group, _balanced(channels, weights), strict=True):
        maker, place = one.maker
        made = len(attribute(graph, _parameters(maker)[0]))
        divided.setdefault(maker, torch.ones(made))[place] = factor
        for reader, at in one.read:
            multiplied.setdefault(reader, torch.ones(len(shares[reader])))[at] = factor
    for maker, factors in divided.items():
        _divide(graph, _parameters(maker), factors)
    for reader, factors in multiplied.items():
        _multiply(graph, reader, factors)


def largest(
    graph: fx.GraphModule, nodes: list[fx.Node], batches: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """The largest magnitude of every channel that each node rounds, over all images."""
    watch = _Watch(graph, nodes)
    for images in batches():
        watch.run(images)
    return [watch.seen[node] for node in nodes]


class _Watch(fx.Interpreter):
    """Runs a graph and keeps the largest magnitudes that some nodes round.

    Not by hooks of modules: one of them rounds at several nodes.
    """

    def __init__(self, graph: fx.GraphModule, nodes: list[fx.Node]) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, Tensor] = {}
        self._nodes = set(nodes)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._nodes:
            most = value.abs().amax((0, 2, 3))
            self.seen[n] = torch.maximum(self.seen[n], most) if n in self.seen else most
        return value


def _factors(graph: fx.GraphModule, pair: Pair, channels: Tensor) -> Tensor:
    """What each channel is divided by: 1 where it, or all that reads it, is zero."""
    weights = torch.stack([_by_input(graph, reader) for reader in pair.read]).amax(0)
    return _balanced(channels, weights)


def _balanced(channels: Tensor, weights: Tensor) -> Tensor:
    """sqrt(range of the channel / largest weight that reads it), their geometric mean being 1."""
    factors = (channels / weights).sqrt()
    usable = (channels > _LEAST) & (weights > _LEAST)
    middle = factors[usable].log().mean().exp() if usable.any() else torch.tensor(1.0)
    factors = (factors / middle).clamp(1 / _MOST, _MOST)
    return torch.where(usable, factors, 1.0)


def _by_input(graph: fx.GraphModule, conv: fx.Node) -> Tensor:
    """The largest weight that reads each channel, as a share of the largest of its own output.

    Every output channel's weights have a scale of their own, so that only their shares count: a
    depthwise convolution can take any channel.
    """
    weight = attribute(graph, source_weight(conv.args[1])).abs().amax((2, 3))  # type: ignore[arg-type]
    share = weight / weight.amax(1, keepdim=True).clamp(min=_LEAST)
    groups = _groups(conv)
    return share.view(groups, -1, share.shape[1]).amax(1).flatten()


def scale_channels(graph: fx.GraphModule, pair: Pair, factors: Tensor) -> None:
    """Divide channels by `factors` (channels), and multiply what reads them, in place."""
    _divide(graph, pair.made, factors)
    for conv in pair.read:
        _multiply(graph, conv, factors)


def _divide(graph: fx.GraphModule, made: tuple[fx.Node, ...], factors: Tensor) -> None:
    for node in made:
        parameter = attribute(graph, node)
        parameter.div_(factors.view(-1, *[1] * (parameter.dim() - 1)))


def _multiply(graph: fx.GraphModule, conv: fx.Node, factors: Tensor) -> None:
    weight = attribute(graph, source_weight(conv.args[1]))  # type: ignore[arg-type]
    # (groups, 1, channels of a group) for (groups, outputs of a group, channels, kernel)
    groups = _groups(conv)
    grouped = weight.view(groups, -1, *weight.shape[1:])
    grouped.mul_(factors.view(groups, 1, -1, 1, 1))


def _groups(conv: fx.Node) -> int:
    return int(conv.args[6]) if len(conv.args) > 6 else 1  # type: ignore[arg-type]
