"""A graph of calibration images computed as the float network and rounded, side by side.

both = SideBySide(graph, batches)
both.take_more(node)                # before a node is computed: as many images as fit from there on
both.compute(node)                  # node by node, in order
exact, rounded = both.found[node]   # a tensor for every batch, of each
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline.compress.quantization.fold import attribute

EXACT, ROUNDED = 0, 1
_MOST_NUMBERS = 2**28
"""Of one tensor of all the images that are looked at: one gigabyte; a few are held at a time."""


class SideBySide:
    """A graph computed as the float network and rounded, node by node, on several batches.

    Args:
        graph: from `qat.prepare`, calibrated, in evaluation mode.
        batches: of images; `take_more` takes them, one after the other.

    Attributes:
        batches: those that were taken.
        found: of every node that was computed and not forgotten, the values of the float network
            and the rounded ones: by batch, or one where it depends on no image.
    """

    def __init__(self, graph: fx.GraphModule, batches: Iterable[Tensor]) -> None:
        self._graph = graph
        self._source = iter(batches)
        self._next = next(self._source, None)
        self.batches: list[Tensor] = []
        self._images = of_images(graph)
        order = {node: place for place, node in enumerate(graph.graph.nodes)}
        self._last = {node: max(node.users, key=order.__getitem__) for node in order if node.users}
        self._largest = _largest_from(graph)
        self.found: dict[fx.Node, tuple[list[Any], list[Any]]] = {}
        # First of all: the float network's weights and statistics are those of before.
        for node in graph.graph.find_nodes(op="get_attr"):
            value = attribute(graph, node)
            self.found[node] = ([value.clone()], [value])

    def take_more(self, node: fx.Node) -> None:
        """Take as many more batches as fit into memory from `node` on; at first one at least.

        Maps become smaller behind every stride. What comes late then is computed up to there, on
        both sides, and what nobody reads any more is let go at once.
        """
        room = _MOST_NUMBERS // self._largest[node]
        taken = sum(map(len, self.batches))
        while self._next is not None and (not taken or taken + len(self._next) <= room):
            taken += len(self._next)
            self._stream(self._next, node)
            self._next = next(self._source, None)

    def _stream(self, batch: Tensor, until: fx.Node) -> None:
        """Compute a batch up to a node, and put it beside the others."""
        held: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
        for node in self._graph.graph.nodes:
            if node is until:
                break
            if node not in self._images:
                continue
            for side, values in enumerate(held):
                given = {
                    source: values[source]
                    if source in self._images
                    else self.found[source][side][0]
                    for source in node.all_input_nodes
                }
                values[node] = batch if node.op == "placeholder" else self.value(node, side, given)
                for source in node.all_input_nodes:
                    if source in self._images and self._last[source] is node:
                        values.pop(source, None)
        for node, both in self.found.items():
            if node in self._images:
                for values, found in zip(held, both, strict=True):
                    found.append(values[node])
        self.batches.append(batch)

    def compute(self, node: fx.Node) -> None:
        """Compute a node, whose arguments are there."""
        if node.op == "placeholder":
            self.found[node] = (list(self.batches), list(self.batches))
        elif node.op not in {"get_attr", "output"}:
            numbers = self.numbers if node in self._images else range(1)
            exact, rounded = (
                [self.value(node, side, self.given(node, side, batch)) for batch in numbers]
                for side in (EXACT, ROUNDED)
            )
            self.found[node] = (exact, rounded)

    @property
    def numbers(self) -> range:
        """Of the batches."""
        return range(len(self.batches))

    def given(self, node: fx.Node, side: int, batch: int) -> dict[fx.Node, Any]:
        """The values of what a node reads."""
        return {
            source: self.found[source][side][batch if source in self._images else 0]
            for source in node.all_input_nodes
        }

    def value(self, node: fx.Node, side: int, values: Mapping[fx.Node, Any]) -> Any:
        """What a node makes of the values of others."""
        given: Any = fx.map_arg(node.args, values.__getitem__)
        named: Any = fx.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_function":
            return node.target(*given, **named)  # type: ignore[operator]
        module: Any = self._graph.get_submodule(str(node.target))
        if not isinstance(module, FakeQuantizeBase):
            return module(*given, **named)
        return given[0] if side == EXACT else _rounded(module, given)

    def shift(self, node: fx.Node) -> Tensor:
        """By how much the mean of every channel of a convolution is larger rounded than exact."""
        exact, rounded = (
            torch.cat([value.mean((2, 3)) for value in side]).mean(0) for side in self.found[node]
        )
        return rounded - exact

    def forget_before(self, node: fx.Node) -> None:
        """Let go of the tensors of images that no node behind `node` reads."""
        for source in node.all_input_nodes:
            if source in self._images and self._last[source] is node:
                del self.found[source]


def _rounded(module: FakeQuantizeBase, given: Sequence[Any]) -> Tensor:
    """What a module rounds, whatever its switches say; it observes nothing."""
    before = module.fake_quant_enabled.clone(), module.observer_enabled.clone()
    module.enable_fake_quant(True)
    module.enable_observer(False)
    value: Tensor = module(*given)
    module.fake_quant_enabled.copy_(before[0])
    module.observer_enabled.copy_(before[1])
    return value


def _largest_from(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Numbers an image of the largest tensor that a node, or one behind it, reads or makes."""
    numbers: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            of_image = value.dim() > 1 and node.op != "get_attr"
            numbers[node] = value[0].numel() if of_image else 1
        else:  # what rounds, of the shape of what it reads
            numbers[node] = max((numbers[one] for one in node.all_input_nodes), default=1)
    largest, found = 1, dict[fx.Node, int]()
    for node in reversed(graph.graph.nodes):
        largest = max(largest, *(numbers[one] for one in (node, *node.all_input_nodes)))
        found[node] = largest
    return found


def of_images(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose values depend on the image."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        reads = node.op != "output" and not found.isdisjoint(node.all_input_nodes)
        if node.op == "placeholder" or reads:
            found.add(node)
    return found
