"""Which layers of a ResNeSt, or of its trunk, are what, by path."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from pipeline.networks.family import Depthwise, Rewritten
from pipeline.networks.resnest.branches import BranchedBlock
from pipeline.networks.resnest.network import ResNeSt


def first_layer(model: ResNeSt) -> str:
    """The convolution that reads the image."""
    return "conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1"


def attention_layers(model: ResNeSt) -> list[str]:
    """What gives the logits of every block's attention, in either form."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "fc2"]


def rewritten(model: nn.Module) -> Rewritten:
    """Half of fc2 goes where there are two splits; pools become depthwise convolutions."""
    gone, added = [], []
    for name, module in model.named_modules():
        if isinstance(module, BranchedBlock):
            added += list(_depthwise(name, module))
            gone += [f"{name}.fc2.1"] if len(module.fc2) == 2 else []
    return Rewritten(gone=frozenset(gone), added=tuple(added))


def _depthwise(name: str, block: BranchedBlock) -> Iterator[Depthwise]:
    """The depthwise convolutions of a block: in its branches, after them, and of its shortcut."""
    for split, branch in enumerate(block.branches):
        yield from _pool(f"{name}.branches.{split}.0", branch[3])  # type: ignore[index]
    last = f"{name}.branches.0.4"
    yield from _pool(last, block.avd_last)
    if isinstance(block.downsample, nn.Sequential):
        yield from _pool(f"{name}.downsample.1", block.downsample[0], reads=True)
    if len(block.branches) == 2:
        # The second split's attention is what the first's leaves of 1, by a convolution.
        yield Depthwise(layer=last, area=1, pools=False)


def _pool(layer: str, pool: nn.Module, *, reads: bool = False) -> Iterator[Depthwise]:
    if isinstance(pool, nn.AvgPool2d):
        area = int(pool.kernel_size) ** 2  # type: ignore[arg-type]
        yield Depthwise(layer=layer, reads=reads, area=area, pools=True)
