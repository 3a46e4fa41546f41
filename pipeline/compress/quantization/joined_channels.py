"""Which channels are which where networks put them side by side, shuffle and cut them apart.

    for joined in joined_channels(graph, images): ...

A channel that a convolution makes may stand beside others, in several tensors, before convolutions
read it: the blocks of a ShuffleNet hand half of their channels on as they are. To follow it, the
graph is run once more with the channels' numbers in place of their values, through all that only
moves values or picks some of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize, FixedFakeQuantize
from pipeline.compress.quantization.fold import attribute, source_weight
from pipeline.compress.quantization.quantizer import CONVOLUTIONS

aten = torch.ops.aten
_MOVES = {
    *(aten.relu.default, aten.relu_.default, aten.max_pool2d.default, aten.cat.default),
    *(aten.slice.Tensor, aten.reshape.default, aten.view.default, aten.transpose.int),
    *(aten.permute.default, aten.pixel_shuffle.default, aten.clone.default),
}
"""What gives values that it was given, and nothing else, of channels scaled above zero too."""
NONE = 0.0
"""In place of the number of a channel that is not followed."""


@dataclass(eq=False)
class Channel:
    """A channel that convolutions make and read.

    Attributes:
        maker: the convolution, or the batch normalisation behind it, and which of its channels.
        read: the convolutions that read it, and the place of it among their inputs.
        rounded: the nodes that round it, and its place in what they round.
        fixed: whether something else has it, too, so that it stays as it is.
    """

    maker: tuple[fx.Node, int]
    read: list[tuple[fx.Node, int]] = field(default_factory=list)
    rounded: list[tuple[fx.Node, int]] = field(default_factory=list)
    fixed: bool = False


class _Follow(fx.Interpreter):
    """Runs a graph, and beside it once more with numbers of channels for values."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.channels: list[Channel] = []
        self._numbers: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op in ("call_function", "call_module", "placeholder"):
            numbers = self._followed(n, value)
            if numbers is not None:
                self._numbers[n] = numbers
        elif n.op == "output":
            self._keep(n.all_input_nodes)
        return value

    def _followed(self, n: fx.Node, value: Tensor) -> Tensor | None:
        """The numbers of a node's channels, of the shape of its value; None of what has none."""
        given = [one for one in n.all_input_nodes if one in self._numbers]
        if n.op == "placeholder":
            return torch.zeros(value.shape)
        if n.op == "call_module":
            return self._rounded(n) if given else None
        if n.target in CONVOLUTIONS and n.args[0] in self._numbers:
            return self._convolved(n, value)
        if n.target is aten.batch_norm.default and n.args[0] in self._numbers:
            return self._normalized(n)
        if n.target in _MOVES and given:
            return self._moved(n)
        if not given or n.target is aten.sym_size.int:
            return None
        self._keep(given)
        return torch.zeros(value.shape)

    def _rounded(self, n: fx.Node) -> Tensor | None:
        (source,) = n.all_input_nodes
        numbers = self._numbers.get(source)
        module = self.module.get_submodule(str(n.target))
        if numbers is None or not isinstance(module, ActivationFakeQuantize):
            return numbers
        if isinstance(module, FixedFakeQuantize):
            self._keep([source])
            return torch.zeros(numbers.shape)
        if numbers.dim() == 4:
            for place, number in enumerate(self._of_channels(source)):
                if number:
                    self.channels[number - 1].rounded.append((n, place))
        return numbers

    def _convolved(self, n: fx.Node, value: Tensor) -> Tensor:
        image: Any = n.args[0]
        if self._only_weighs(n, value):
            each = value.shape[1] // self._numbers[image].shape[1]
            found = torch.tensor(self._of_channels(image), dtype=torch.float32)
            return found.repeat_interleave(each).view(1, -1, 1, 1).expand(value.shape)
        for place, number in enumerate(self._of_channels(image)):
            if number:
                self.channels[number - 1].read.append((n, place))
        begin = len(self.channels) + 1
        self.channels += [Channel(maker=(n, channel)) for channel in range(value.shape[1])]
        numbers = torch.arange(begin, begin + value.shape[1], dtype=torch.float32)
        return numbers.view(1, -1, 1, 1).expand(value.shape)

    def _only_weighs(self, n: fx.Node, value: Tensor) -> bool:
        """Whether a convolution weighs every channel alone, by constants: an average pool does."""
        channels = self._numbers[n.args[0]].shape[1]  # type: ignore[index]
        weight = attribute(self.module, weight_of(n))  # type: ignore[arg-type]
        alone = len(n.args) > 6 and n.args[6] == channels and n.args[2] is None
        return bool(alone and value.shape[1] % channels == 0 and not weight.requires_grad)

    def _normalized(self, n: fx.Node) -> Tensor:
        conv: Any = n.args[0]
        for number in self._of_channels(conv):
            if number:
                channel = self.channels[number - 1]
                channel.maker = (n, channel.maker[1])
                channel.fixed |= len(conv.users) > 1 or conv.target not in CONVOLUTIONS
        return self._numbers[conv]

    def _moved(self, n: fx.Node) -> Tensor:
        def given(node: fx.Node) -> Any:
            if node in self._numbers:
                return self._numbers[node].contiguous()
            found = self.env[node]
            return torch.zeros(found.shape) if isinstance(found, Tensor) else found

        args = fx.node.map_arg(n.args, given)
        found: Tensor = n.target(*args, **n.kwargs)  # type: ignore[operator]
        return found

    def _of_channels(self, node: fx.Node) -> list[int]:
        """The channels of an image; NONE of a place that several share, which keeps them."""
        numbers = self._numbers[node]
        least, most = numbers.amin((0, 2, 3)), numbers.amax((0, 2, 3))
        if (least != most).any():
            self._keep([node])
        return [int(a) if a == b else 0 for a, b in zip(least.tolist(), most.tolist(), strict=True)]

    def _keep(self, nodes: Sequence[fx.Node]) -> None:
        for node in nodes:
            for number in set(self._numbers.get(node, torch.zeros(1)).flatten().tolist()):
                if number:
                    self.channels[int(number) - 1].fixed = True


def joined_channels(graph: fx.GraphModule, images: Tensor) -> list[Channel]:
    """The channels of a prepared graph that may be scaled: made and read by convolutions alone.

    Args:
        graph: from `qat.prepare`.
        images: a few, that it is run on.
    """
    follow = _Follow(graph)
    with torch.no_grad():
        follow.run(images)
    return [one for one in follow.channels if one.read and one.rounded and not one.fixed]


def together(channels: Iterable[Channel]) -> list[list[Channel]]:
    """Channels in groups: those that stand in one tensor, or in one with such that do."""
    of: dict[fx.Node, int] = {}
    groups: list[list[Channel]] = []
    for channel in channels:
        nodes = [node for node, _ in channel.rounded]
        found = sorted({of[node] for node in nodes if node in of})
        target = found[0] if found else len(groups)
        if not found:
            groups.append([])
        for other in found[1:]:
            groups[target] += groups[other]
            groups[other] = []
            of = {node: target if group == other else group for node, group in of.items()}
        groups[target].append(channel)
        of |= dict.fromkeys(nodes, target)
    return [group for group in groups if group]


def weight_of(conv: fx.Node) -> fx.Node:
    """The parameter of a convolution's weights."""
    return source_weight(conv.args[1])  # type: ignore[arg-type]
