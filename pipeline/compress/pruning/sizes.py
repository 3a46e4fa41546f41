"""How many bytes a file of given widths holds, before it is written.

A file holds every weight, a few numbers for every channel, and a description of every layer. What
a description takes was read off files of ten networks, from 7 to 50 layers deep
(docs/measurements.md). The file that a run writes is measured as it is.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from pipeline.compress.pruning.costs import Cost, LayerShape, Term, Widths
from pipeline.compress.pruning.groups import Group
from pipeline.compress.pruning.stored import Bytes
from pipeline.networks.resnest.branches import BranchedBlock
from pipeline.networks.resnest.network import ResNeSt


def size_mb(
    model: ResNeSt, shapes: tuple[LayerShape, ...], groups: tuple[Group, ...], each: Bytes
) -> Cost:
    """Size of the target's file in units of 1e6 bytes.

    Args:
        model: in branch form; its deploy form has half of fc2 where there are two splits, and
            depthwise convolutions in place of the pools.
        shapes: of its layers.
        groups: of its channels.
        each: what the file spends on what.
    """
    halved = {f"{name}.fc2.1" for name, block in _blocks(model) if len(block.fc2) == 2}
    kept = [shape for shape in shapes if shape.name not in halved]
    terms = [Term(layer=s.name, groups=s.tied_to, value=partial(_layer_mb, s, each)) for s in kept]
    of_layer = {maker: group.name for group in groups for maker in group.makers}
    of_reader = {reader: group.name for group in groups for reader in group.readers}
    depthwise = []
    for name, block in _blocks(model):
        pools = [(of_layer[layer], area) for layer, area in _pools(name, block)]
        if isinstance(block.downsample, nn.Sequential):
            pools.append((of_reader[f"{name}.downsample.1"], _area(block.downsample[0])))
        depthwise += [(g, area * each.weight + each.pool_channel) for g, area in pools if area]
        if len(block.branches) == 2:
            # The second split's attention is what the first's leaves of 1, by a convolution.
            depthwise.append((of_layer[f"{name}.branches.0.4"], each.weight + each.channel))
    terms += [
        Term(layer=group, groups=(group,), value=partial(_depthwise_mb, group, of_channel))
        for group, of_channel in depthwise
    ]
    return Cost(terms=tuple(terms), constant=len(terms) * each.layer / 1e6)


def _blocks(model: ResNeSt) -> list[tuple[str, BranchedBlock]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, BranchedBlock)]


def _area(pool: nn.Module) -> int:
    """Weights of a channel of the depthwise convolution that stands for a pool; 0 for none."""
    return int(pool.kernel_size) ** 2 if isinstance(pool, nn.AvgPool2d) else 0  # type: ignore[arg-type]


def _pools(name: str, block: BranchedBlock) -> list[tuple[str, int]]:
    """The pools of a block's branches and after them: whose channels, and their area."""
    splits = range(len(block.branches))
    first = [(f"{name}.branches.{r}.0", _area(block.branches[r][3])) for r in splits]  # type: ignore[index]
    return [*first, (f"{name}.branches.0.4", _area(block.avd_last))]


def _layer_mb(shape: LayerShape, each: Bytes, widths: Widths) -> float:
    return (shape.weights(widths) * each.weight + shape.channels(widths)[1] * each.channel) / 1e6


def _depthwise_mb(group: str, of_channel: int, widths: Widths) -> float:
    return widths[group] * of_channel / 1e6
