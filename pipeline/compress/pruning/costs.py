"""What a network of given widths costs: a sum of terms, one for a layer each.

Widths are numbers of channels by the name of their group. A term knows the groups it depends on,
so that a search can ask what one change of width changes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial

from pipeline.compress.pruning.groups import CutKind, Group
from pipeline.networks.count import Counts, LayerCount

Widths = Mapping[str, int]

_PARAMETERS: dict[CutKind, int] = {"norms": 2, "scales": 1}
"""Numbers for each channel of what is no convolution and no linear layer."""


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
class Channels:
    """The inputs or outputs of a layer: those of some groups beside each other, and others.

    Attributes:
        fixed: of no group, such as the image's and the classes.
        of: groups, and how many the layer has for each channel of one: 1 / 2 where a chunk gives
            it half of them, 49 behind a flattened image of 7 x 7.
    """

    fixed: int
    of: tuple[tuple[str, Fraction], ...] = ()

    def at(self, widths: Widths) -> int:
        """How many there are."""
        found = self.fixed
        for group, numerator, denominator in self._shares:
            found += widths[group] * numerator // denominator
        return found

    @cached_property
    def _shares(self) -> tuple[tuple[str, int, int], ...]:
        """`of` in integers: a search for widths asks a million times."""
        return tuple((group, each.numerator, each.denominator) for group, each in self.of)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(group for group, _ in self.of)


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A convolution or linear layer as widths change it.

    Attributes:
        name: its path.
        inputs: channels; 1 of a depthwise convolution.
        outputs: channels.
        area: weights for one input and one output.
        groups: into which they are divided; 1 of a depthwise convolution.
        positions: outputs of one channel.
    """

    name: str
    inputs: Channels
    outputs: Channels
    area: int
    groups: int
    positions: int

    def weights(self, widths: Widths) -> float:
        """Weights at `widths`: C_o C_i K_h K_w / G."""
        inputs, outputs = self.inputs.at(widths), self.outputs.at(widths)
        return inputs * outputs * self.area / self.groups

    @property
    def tied_to(self) -> tuple[str, ...]:
        """The groups its cost depends on."""
        return tuple(dict.fromkeys((*self.inputs.groups, *self.outputs.groups)))


def layer_shapes(groups: Sequence[Group], counts: Counts) -> tuple[LayerShape, ...]:
    """Every counted layer of a network in prunable form, with the groups of its channels."""
    made, read = of_layers(groups, "makes", "follows"), of_layers(groups, "reads")
    present = {group.name: group.channels for group in groups}
    return tuple(_layer_shape(layer, made, read, present) for layer in counts.layers)


Shares = Mapping[str, tuple[tuple[str, Fraction], ...]]
"""What layers have for each channel of a group, by their paths."""


def of_layers(groups: Iterable[Group], *kinds: CutKind) -> Shares:
    """What layers lose for each channel of a group, of some kinds."""
    found: defaultdict[str, list[tuple[str, Fraction]]] = defaultdict(list)
    for group in groups:
        for cut in group.cuts:
            if cut.kind in kinds:
                each = Fraction(len(cut.positions), group.channels)
                found[cut.layer].append((group.name, each))
    return {layer: tuple(of) for layer, of in found.items()}


def _layer_shape(layer: LayerCount, made: Shares, read: Shares, present: Widths) -> LayerShape:
    depthwise = 1 < layer.groups == layer.outputs == layer.inputs
    # A depthwise convolution has weights for every channel, not for every pair of them.
    inputs = _channels(layer.inputs, read.get(layer.name, ()), present)
    return LayerShape(
        name=layer.name,
        inputs=Channels(fixed=1) if depthwise else inputs,
        outputs=_channels(layer.outputs, made.get(layer.name, ()), present),
        area=math.prod(layer.kernel),
        groups=1 if depthwise else layer.groups,
        positions=layer.positions,
    )


def _channels(whole: int, of: tuple[tuple[str, Fraction], ...], present: Widths) -> Channels:
    return Channels(fixed=whole - Channels(fixed=0, of=of).at(present), of=of)


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
    """Parameters: weights, biases, two for every channel of a batch normalisation, slopes."""
    biased = {layer.name for layer in counts.layers if layer.biased}
    layers = tuple(
        Term(
            layer=shape.name,
            groups=shape.tied_to,
            value=partial(_layer_params, shape, shape.name in biased),
        )
        for shape in shapes
    )
    others = tuple(
        Term(
            layer=group.name,
            groups=(group.name,),
            value=partial(_each_channel, group.name, _other_params(group)),
        )
        for group in groups
    )
    present = {group.name: group.channels for group in groups}
    counted = Cost(terms=layers + others)
    return Cost(terms=counted.terms, constant=counts.params - counted.of(present))


def _layer_params(shape: LayerShape, biased: bool, widths: Widths) -> float:
    return shape.weights(widths) + (shape.outputs.at(widths) if biased else 0)


def _other_params(group: Group) -> Fraction:
    """Parameters of a channel in layers that are no convolutions and not linear."""
    of = (_PARAMETERS.get(cut.kind, 0) * len(cut.positions) for cut in group.cuts)
    return Fraction(sum(of), group.channels)


def _each_channel(group: str, each: Fraction, widths: Widths) -> float:
    return float(each * widths[group])
