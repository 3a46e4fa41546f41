"""The families of networks. A further one is a folder beside this module, an entry of `FAMILIES`.

FAMILIES["resnest"].options.names()  # what `model.name` may be, without torch
family_of(recipe.model).build        # imports torch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.networks.model_info import ModelInfo
from pipeline.recipe.fastestdet import FastestDetModel
from pipeline.recipe.libraries import PythonModel, TimmModel, TorchvisionModel
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.resnest import ResNeStModel
from pipeline.recipe.segmenter import SegmenterModel
from pipeline.recipe.shift import ShiftModel
from pipeline.recipe.shufflenet import ShuffleNetModel

if TYPE_CHECKING:
    from pipeline.networks.family import AnyFamily


def _resnest() -> AnyFamily:
    from pipeline.networks.resnest.family import FAMILY

    return FAMILY


def _shufflenet() -> AnyFamily:
    from pipeline.networks.shufflenet.family import FAMILY

    return FAMILY


def _shift() -> AnyFamily:
    from pipeline.networks.shift.family import FAMILY

    return FAMILY


def _fastestdet() -> AnyFamily:
    from pipeline.networks.fastestdet.family import FAMILY

    return FAMILY


def _segmenter() -> AnyFamily:
    from pipeline.networks.segmenter.family import FAMILY

    return FAMILY


def _torchvision() -> AnyFamily:
    from pipeline.networks.libraries.families import TORCHVISION

    return TORCHVISION


def _timm() -> AnyFamily:
    from pipeline.networks.libraries.families import TIMM

    return TIMM


def _python() -> AnyFamily:
    from pipeline.networks.libraries.families import PYTHON

    return PYTHON


@dataclass(frozen=True, kw_only=True)
class FamilyEntry:
    """What is known of a family without torch.

    Attributes:
        options: what a recipe may ask for, and the names of the networks.
        family: what the family does; imports torch.
    """

    options: type[ModelConfig]
    family: Callable[[], AnyFamily]


FAMILIES: dict[str, FamilyEntry] = {
    "resnest": FamilyEntry(options=ResNeStModel, family=_resnest),
    "shufflenet": FamilyEntry(options=ShuffleNetModel, family=_shufflenet),
    "shift": FamilyEntry(options=ShiftModel, family=_shift),
    "fastestdet": FamilyEntry(options=FastestDetModel, family=_fastestdet),
    "segmenter": FamilyEntry(options=SegmenterModel, family=_segmenter),
    "torchvision": FamilyEntry(options=TorchvisionModel, family=_torchvision),
    "timm": FamilyEntry(options=TimmModel, family=_timm),
    "python": FamilyEntry(options=PythonModel, family=_python),
}


def family_of(config: ModelConfig) -> AnyFamily:
    """The family of a recipe's network."""
    return next(one.family() for one in FAMILIES.values() if isinstance(config, one.options))


def model_info(recipe: Recipe, num_classes: int, params: int, macs: int) -> ModelInfo:
    """A recipe's float network, as the report names it."""
    return ModelInfo(
        name=recipe.model.title,
        block=family_of(recipe.model).block(recipe.model),
        input_shape=recipe.model.input_shape.batch(1),
        num_classes=num_classes,
        params=params,
        macs=macs,
    )
