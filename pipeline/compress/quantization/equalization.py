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

Left alone are channels that are clamped from above (ReLU6), since the clamp would have to be
another one for each, and those that anything else than a convolution reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.compress.quantization.fold import attribute, readers_of, source_weight
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
    with torch.no_grad():
        largest = _largest(graph, found, batches)
        for pair, channels in zip(found, largest, strict=True):
            scale_channels(graph, pair, _factors(graph, pair, channels))
    return len(found)


def _largest(
    graph: fx.GraphModule, found: list[Pair], batches: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """The largest magnitude of every channel of each pair over all images."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def keep(module: nn.Module, given: tuple[Tensor]) -> None:
            most = given[0].abs().amax((0, 2, 3))
            seen[name] = torch.maximum(seen[name], most) if name in seen else most

        return keep

    names = [str(pair.rounding.target) for pair in found]
    handles = [graph.get_submodule(n).register_forward_pre_hook(watch(n)) for n in names]
    try:
        for images in batches():
            graph(images)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in names]


def _factors(graph: fx.GraphModule, pair: Pair, channels: Tensor) -> Tensor:
    """What each channel is divided by: 1 where it, or all that reads it, is zero."""
    weights = torch.stack([_by_input(graph, reader) for reader in pair.read]).amax(0)
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
    for node in pair.made:
        parameter = attribute(graph, node)
        parameter.div_(factors.view(-1, *[1] * (parameter.dim() - 1)))
    for conv in pair.read:
        weight = attribute(graph, source_weight(conv.args[1]))  # type: ignore[arg-type]
        # (groups, 1, channels of a group) for (groups, outputs of a group, channels, kernel)
        groups = _groups(conv)
        grouped = weight.view(groups, -1, *weight.shape[1:])
        grouped.mul_(factors.view(groups, 1, -1, 1, 1))


def _groups(conv: fx.Node) -> int:
    return int(conv.args[6]) if len(conv.args) > 6 else 1  # type: ignore[arg-type]
