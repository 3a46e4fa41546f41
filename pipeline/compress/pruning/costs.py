"""What a network of given widths costs: a sum of terms, one for a layer each.

Widths are numbers of channels by the name of their group. A term knows the groups it depends on,
so that a search can ask what one change of width changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from pipeline.compress.pruning.groups import Group
from pipeline.networks.count import Counts

Widths = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Term:
    """What one layer costs.

    Attributes:
        layer: its name.
        groups: those whose widths decide the value.
        value: of the cost, from the widths.
    """

    layer: str
    groups: tuple[str, ...]
    value: Callable[[Widths], float]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A whole network: the sum of its terms, and of what no width changes."""

    terms: tuple[Term, ...]
    constant: float = 0.0

    def of(self, widths: Widths) -> float:
        """The cost at `widths`."""
        return self.constant + sum(term.value(widths) for term in self.terms)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A convolution or linear layer as widths change it.

    `inputs` and `outputs` are numbers of channels where nothing is pruned, `input_group` and
    `output_group` the groups they are in; the image and the classes are in none.
    """

    name: str
    inputs: int
    outputs: int
    input_group: str | None
    output_group: str | None
    area: int
    groups: int
    positions: int

    def weights(self, widths: Widths) -> float:
        """Weights at `widths`: C_o C_i K_h K_w / G."""
        inputs, outputs = self.channels(widths)
        return inputs * outputs * self.area / self.groups

    def channels(self, widths: Widths) -> tuple[int, int]:
        """Input and output channels at `widths`."""
        inputs = widths[self.input_group] if self.input_group else self.inputs
        outputs = widths[self.output_group] if self.output_group else self.outputs
        return inputs, outputs

    @property
    def tied_to(self) -> tuple[str, ...]:
        """The groups its cost depends on."""
        return tuple(name for name in {self.input_group, self.output_group} if name)


def layer_shapes(groups: tuple[Group, ...], counts: Counts) -> tuple[LayerShape, ...]:
    """Every counted layer of a network in branch form, with the groups of its channels."""
    made_by = {maker: group.name for group in groups for maker in group.makers}
    read_by = {reader: group.name for group in groups for reader in group.readers}
    return tuple(
        LayerShape(
            name=layer.name,
            inputs=layer.inputs,
            outputs=layer.outputs,
            input_group=read_by.get(layer.name),
            output_group=made_by.get(layer.name),
            area=math.prod(layer.kernel),
            groups=layer.groups,
            positions=layer.positions,
        )
        for layer in counts.layers
    )


def macs(shapes: tuple[LayerShape, ...]) -> Cost:
    """Multiply-accumulates of one image."""
    return Cost(
        terms=tuple(
            Term(layer=s.name, groups=s.tied_to, value=partial(_layer_macs, s)) for s in shapes
        )
    )


def _layer_macs(shape: LayerShape, widths: Widths) -> float:
    return shape.weights(widths) * shape.positions


def params(shapes: tuple[LayerShape, ...], groups: tuple[Group, ...], counts: Counts) -> Cost:
    """Parameters: weights, biases, and two for every channel of a batch normalisation."""
    biased = {layer.name for layer in counts.layers if layer.biased}
    layers = tuple(
        Term(
            layer=shape.name,
            groups=shape.tied_to,
            value=partial(_layer_params, shape, shape.name in biased),
        )
        for shape in shapes
    )
    norms = tuple(
        Term(layer=group.name, groups=(group.name,), value=partial(_norm_params, group))
        for group in groups
    )
    return Cost(terms=layers + norms)


def _layer_params(shape: LayerShape, biased: bool, widths: Widths) -> float:
    return shape.weights(widths) + (shape.channels(widths)[1] if biased else 0)


def _norm_params(group: Group, widths: Widths) -> float:
    return 2.0 * len(group.norms) * widths[group.name]
