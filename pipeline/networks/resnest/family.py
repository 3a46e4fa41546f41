"""ResNeSt as a family of networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from torch import nn

from pipeline.networks.family import Depthwise, Family, Rewritten, Structure
from pipeline.networks.resnest.branches import BranchedBlock, branch_form
from pipeline.networks.resnest.build import build, shape_of
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.hints import hints
from pipeline.networks.resnest.network import CLASSIFIER, DropBlock, ResNeSt
from pipeline.networks.resnest.published import PUBLISHED
from pipeline.recipe.training import TrainConfig

_DROPPING_STAGES = 2


def _structure(model: ResNeSt) -> Structure:
    """Zeros are worth having in convolutions alone, and not in all of them.

    Left dense are:

    - the first one: three input channels, which few patterns divide, and 864 weights in ResNeSt-50.
    - the classifier: each of its weights belongs to one class.
    - `fc2` of every block: the deploy form subtracts one split's from the other's, and a
      difference is zero only where both are.
    """
    first = "conv1.0" if isinstance(model.conv1, nn.Sequential) else "conv1"
    attention = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "fc2"]
    return Structure(
        classifier=CLASSIFIER,
        stages=model.stage_names(),
        dense=(first, CLASSIFIER, *attention),
    )


def _shape(model: ResNeSt) -> dict[str, object]:
    # The channels of its images are those of its first convolution, which differ anyway.
    return {key: value for key, value in asdict(model.config).items() if key != "channels"}


def _drop(model: ResNeSt, config: TrainConfig) -> None:
    """Have a network drop squares in its last two stages, and features before its classifier.

    As in the ResNeSt paper (Zhang et al. 2020, section 5.1), with DropBlock (Ghiasi et al. 2018).
    Nothing is dropped in evaluation mode.
    """
    for stage in model.stages()[-_DROPPING_STAGES:]:
        for module in stage.modules():
            if isinstance(module, DropBlock):
                module.probability = config.dropblock
    model.drop.p = config.dropout


def _rewritten(model: ResNeSt) -> Rewritten:
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


FAMILY = Family(
    build=build,
    structure=_structure,
    shape=_shape,
    block=lambda config: shape_of(config, 1).block,
    hints=hints,
    start=ResNeSt.start_as_identity,
    drop=_drop,
    prunable=branch_form,
    deploy=deploy_form,
    rewritten=_rewritten,
    published=PUBLISHED,
)
