"""The layers of a file, and the groups of channels that each of them reads and makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import fx

from pipeline.compress.pruning.costs import Channels, Widths
from pipeline.compress.pruning.groups import Group
from pipeline.measure.layers import Layer, layers_of

_CONCAT = torch.ops.aten.cat.default


@dataclass(frozen=True, kw_only=True)
class FileLayer:
    """A layer of the file.

    Attributes:
        name: of its output tensor.
        place: the module that makes it: a layer, or the block it stands in.
        kind: layers of one kind and equal channels take the same time.
        inputs: channels; of several tensors that are no concatenation, the first one's.
        outputs: channels.
        sized: whether it is a convolution with a width of its own.
    """

    name: str
    place: str
    kind: str
    inputs: Channels
    outputs: Channels
    sized: bool

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that its time depends on."""
        return tuple(dict.fromkeys((*self.inputs.groups, *self.outputs.groups)))

    def features(self, widths: Widths, tile: int = 1) -> tuple[float, float, float]:
        """What its time is linear in: products, inputs and outputs, outputs in whole tiles."""
        inputs, outputs = self.inputs.at(widths), self.outputs.at(widths)
        outputs = -(-outputs // tile) * tile
        return float(inputs * outputs), float(inputs), float(outputs)


def file_layers(
    program: torch.export.ExportedProgram, groups: Sequence[Group]
) -> tuple[FileLayer, ...]:
    """The layers of an unpruned network's program, with their groups.

    Args:
        program: quantized.
        groups: of the channels of the network that it was made of, which shares its layers' names.
    """
    made = {maker: group for group in groups for maker in group.makers}
    present = {group.name: group.channels for group in groups}
    nodes = {node.name: node for node in program.graph.nodes}
    found: dict[str, FileLayer] = {}
    for layer in layers_of(program):
        if not layer.inputs:
            continue  # the image
        operation = nodes[layer.operation]
        mixes = _mixes_channels(operation)
        own = made.get(layer.module) if mixes else None
        read = [_channels(name, found, nodes) for name in layer.inputs]
        given = _beside(read) if _joins(operation) else read[0]
        whole = _count(nodes[layer.name])
        if own is not None:
            # More outputs than channels where one convolution makes the logits of all splits.
            output = Channels(fixed=0, of=((own.name, Fraction(whole, own.channels)),))
        else:
            output = Channels(fixed=whole) if mixes else _scaled(given, whole, present)
        found[layer.name] = FileLayer(
            name=layer.name,
            place=layer.module,
            kind=_kind(layer, nodes),
            inputs=given,
            outputs=output,
            sized=own is not None,
        )
    return tuple(found.values())


def _count(node: fx.Node) -> int:
    return int(node.meta["val"].shape[1])


def _channels(name: str, found: Mapping[str, FileLayer], nodes: Mapping[str, fx.Node]) -> Channels:
    """Those of a tensor; the image's are its own."""
    return found[name].outputs if name in found else Channels(fixed=_count(nodes[name]))


def _joins(operation: fx.Node) -> bool:
    """Whether it lays channels beside each other."""
    return operation.target is _CONCAT and operation.args[1:2] in ((1,), (-3,))


def _beside(parts: Sequence[Channels]) -> Channels:
    return Channels(
        fixed=sum(part.fixed for part in parts), of=tuple(one for part in parts for one in part.of)
    )


def _scaled(given: Channels, whole: int, present: Widths) -> Channels:
    """Channels that go on as they are, or a share of them, such as half of every group."""
    before = given.at(present)
    if before == whole:
        return given
    if given.fixed:
        return Channels(fixed=whole)
    share = Fraction(whole, before)
    return Channels(fixed=0, of=tuple((group, each * share) for group, each in given.of))


def _mixes_channels(operation: fx.Node) -> bool:
    """Whether outputs are made of many inputs: of a depthwise convolution they are its inputs."""
    if operation.target is not torch.ops.aten.conv2d.default:
        return False
    weight = operation.args[1].meta["val"]  # type: ignore[union-attr]
    return int(weight.shape[1]) > 1


def _kind(layer: Layer, nodes: Mapping[str, fx.Node]) -> str:
    """Operation and shapes where nothing is pruned, the batch left out."""
    operation = nodes[layer.operation]
    shapes = [tuple(nodes[name].meta["val"].shape[1:]) for name in (*layer.inputs, layer.name)]
    kernel = ""
    if operation.target is torch.ops.aten.conv2d.default:
        kernel = str(tuple(operation.args[1].meta["val"].shape))  # type: ignore[union-attr]
    return f"{operation.target} {kernel} {shapes}"


def sized_layers(layers: Sequence[FileLayer], widths: Widths) -> dict[str, int]:
    """Output channels of every convolution that has a width of its own, by the file's name."""
    return {layer.name: layer.outputs.at(widths) for layer in layers if layer.sized}
