"""ResNeSts without their classifiers, as the backbones of other networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.networks.family import Trunks
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.build import built
from pipeline.networks.resnest.deploy import with_deploy_blocks
from pipeline.networks.resnest.network import NAMED, ResNeSt, ResNeStConfig
from pipeline.networks.resnest.places import attention_layers, first_layer, rewritten
from pipeline.recipe.resnest import ResNeStModel


class Trunk(ResNeSt):
    """A ResNeSt that gives the outputs of its four stages; its layers keep their paths."""

    def __init__(self, config: ResNeStConfig) -> None:
        super().__init__(config)
        del self.fc, self.drop

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """(batch, channels, height, width) to images at a 4th, 8th, 16th and 32nd of the sides."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        found = []
        for stage in self.stages():
            x = stage(x)
            found.append(x)
        return found


def build(name: str, channels: int, arguments: Mapping[str, object]) -> Trunk:
    """A trunk with random weights.

    Args:
        name: of the network.
        channels: of an image.
        arguments: keys of the recipe's `model` that a ResNeSt has, such as width_multiplier.

    Raises:
        InputError: it has no such key, or the network cannot be.
    """
    try:
        config = ResNeStModel.model_validate({"name": name, "channels": channels, **arguments})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"model.backbone_arguments.{key}: {first['msg']}") from error
    if config.stem == "small":
        raise InputError("model.backbone_arguments.stem: got small; a backbone has a deep stem")
    made = built(config, 1, Trunk)
    if len(made.stage_names()) < len(made.stages()):
        raise InputError("model.backbone_arguments.layers: every stage of a backbone has blocks")
    return made


TRUNKS = Trunks(
    build=build,
    example=next(iter(NAMED)),
    dense=lambda trunk: (first_layer(trunk), *attention_layers(trunk)),
    start=ResNeSt.start_as_identity,
    prunable=branch_form,
    deploy=with_deploy_blocks,
    rewritten=rewritten,
)
