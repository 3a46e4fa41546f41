"""ResNeSt as a family of networks."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.networks.family import Family, Structure
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.build import build, shape_of
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.hints import hints
from pipeline.networks.resnest.network import CLASSIFIER, DropBlock, ResNeSt
from pipeline.networks.resnest.places import attention_layers, first_layer, rewritten
from pipeline.networks.resnest.published import PUBLISHED
from pipeline.networks.resnest.trunk import TRUNKS
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
    return Structure(
        classifier=CLASSIFIER,
        stages=model.stage_names(),
        dense=(first_layer(model), CLASSIFIER, *attention_layers(model)),
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
    rewritten=rewritten,
    published=PUBLISHED,
    trunks=TRUNKS,
)
