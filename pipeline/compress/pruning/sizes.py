"""How many bytes a file of given widths holds, before it is written.

A file holds every weight, a few numbers for every channel, and a description of every layer. What
a description takes was read off files of ten networks, from 7 to 50 layers deep
(docs/measurements.md). The file that a run writes is measured as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipeline.compress.pruning.costs import Channels, Cost, LayerShape, Term, Widths
from pipeline.compress.pruning.stored import Bytes
from pipeline.networks.family import Depthwise, Rewritten


def size_mb(
    rewritten: Rewritten, shapes: tuple[LayerShape, ...], each: Callable[[str], Bytes]
) -> Cost:
    """Size of the target's file in units of 1e6 bytes.

    Args:
        rewritten: what the deploy form does to the layers.
        shapes: of the layers of the prunable form.
        each: what the file spends on a layer, by its path.
    """
    kept = [shape for shape in shapes if shape.name not in rewritten.gone]
    terms = [
        Term(layer=s.name, groups=s.tied_to, value=partial(_layer_mb, s, each(s.name)))
        for s in kept
    ]
    constant = sum(each(shape.name).layer for shape in kept)
    shape_of = {shape.name: shape for shape in shapes}
    for added in rewritten.added:
        shape = shape_of[added.layer]
        channels = shape.inputs if added.reads else shape.outputs
        value = partial(_depthwise_mb, channels, _of_channel(added, each(added.layer)))
        constant += each(added.layer).layer
        # Named by the group that it belongs to, not by the layer beside it: so it is in its stage.
        name = next(iter(channels.groups), added.layer)
        terms.append(Term(layer=name, groups=channels.groups, value=value))
    return Cost(terms=tuple(terms), constant=constant / 1e6)


def _of_channel(added: Depthwise, each: Bytes) -> int:
    """Bytes of a channel of a depthwise convolution."""
    return added.area * each.weight + (each.pool_channel if added.pools else each.channel)


def _layer_mb(shape: LayerShape, each: Bytes, widths: Widths) -> float:
    return (shape.weights(widths) * each.weight + shape.outputs.at(widths) * each.channel) / 1e6


def _depthwise_mb(channels: Channels, of_channel: int, widths: Widths) -> float:
    return channels.at(widths) * of_channel / 1e6
