"""ShuffleNet as a family of networks."""

from __future__ import annotations

from pipeline.networks.family import Family, Structure
from pipeline.networks.shufflenet.network import CLASSIFIER, ShuffleNet
from pipeline.recipe.shufflenet import ShuffleNetModel


def build(config: ShuffleNetModel, num_classes: int) -> ShuffleNet:
    """The network that a recipe describes, with random weights."""
    return ShuffleNet(
        num_classes,
        groups=config.groups,
        width_multiplier=config.width_multiplier,
        small_stem=config.stem == "small",
        channels=config.channels,
    )


def _structure(model: ShuffleNet) -> Structure:
    return Structure(
        classifier=CLASSIFIER, stages=model.stage_ends(), dense=("first_conv.0", CLASSIFIER)
    )


def _shape(model: ShuffleNet) -> dict[str, object]:
    """Neither can be read off the sizes of tensors alone."""
    return {"groups": model.groups, "stem_stride": model.stem_stride}


FAMILY = Family(build=build, structure=_structure, shape=_shape)
