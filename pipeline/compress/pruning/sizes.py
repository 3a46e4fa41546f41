"""How many bytes a file of given widths holds, before it is written.

A file holds every weight, a few numbers for every channel, and a description of every layer. What
a description takes was read off files of ten networks, from 7 to 50 layers deep
(docs/measurements.md). The file that a run writes is measured as it is.
"""

from __future__ import annotations

from functools import partial

from pipeline.compress.pruning.costs import Cost, LayerShape, Term, Widths
from pipeline.compress.pruning.groups import Group
from pipeline.compress.pruning.stored import Bytes
from pipeline.networks.family import Depthwise, Rewritten


def size_mb(
    rewritten: Rewritten, shapes: tuple[LayerShape, ...], groups: tuple[Group, ...], each: Bytes
) -> Cost:
    """Size of the target's file in units of 1e6 bytes.

    Args:
        rewritten: what the deploy form does to the layers.
        shapes: of the layers of the prunable form.
        groups: of its channels.
        each: what the file spends on what.
    """
    kept = [shape for shape in shapes if shape.name not in rewritten.gone]
    terms = [Term(layer=s.name, groups=s.tied_to, value=partial(_layer_mb, s, each)) for s in kept]
    made = {maker: group.name for group in groups for maker in group.makers}
    read = {reader: group.name for group in groups for reader in group.readers}
    for added in rewritten.added:
        group = (read if added.reads else made)[added.layer]
        value = partial(_depthwise_mb, group, _of_channel(added, each))
        terms.append(Term(layer=group, groups=(group,), value=value))
    return Cost(terms=tuple(terms), constant=len(terms) * each.layer / 1e6)


def _of_channel(added: Depthwise, each: Bytes) -> int:
    """Bytes of a channel of a depthwise convolution."""
    return added.area * each.weight + (each.pool_channel if added.pools else each.channel)


def _layer_mb(shape: LayerShape, each: Bytes, widths: Widths) -> float:
    return (shape.weights(widths) * each.weight + shape.channels(widths)[1] * each.channel) / 1e6


def _depthwise_mb(group: str, of_channel: int, widths: Widths) -> float:
    return widths[group] * of_channel / 1e6
