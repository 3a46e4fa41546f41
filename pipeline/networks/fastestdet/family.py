"""FastestDet as a family of networks."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.networks.family import Family, Structure
from pipeline.networks.fastestdet.network import BOX_VALUES, FastestDet
from pipeline.recipe.fastestdet import FastestDetModel

_CLASSES = "detect_head.cls_layers.conv5x5"
_ANSWERS = ("detect_head.obj_layers.conv5x5.3", "detect_head.reg_layers.conv5x5.3")


def build(config: FastestDetModel, outputs: int) -> FastestDet:
    """The network that a recipe describes, with random weights.

    Args:
        config: of the recipe.
        outputs: numbers for a place of the map: one for the object, four for its box, and one for
            every class.

    Raises:
        InputError: they leave no class; the task is another one.
    """
    classes = outputs - 1 - BOX_VALUES
    if classes < 1:
        raise InputError(
            f"model.name: {config.name} finds objects and their boxes; set task.kind to detection"
        )
    return FastestDet(classes, config.channels)


def _structure(model: FastestDet) -> Structure:
    return Structure(
        classifier=f"{_CLASSES}.3",
        answers=_ANSWERS,
        head=(
            *(f"{_CLASSES}.3.weight", f"{_CLASSES}.4.bias", f"{_CLASSES}.4.weight"),
            *(f"{_CLASSES}.4.running_mean", f"{_CLASSES}.4.running_var"),
        ),
        stages=model.stage_ends(),
        dense=("backbone.first_conv.0", f"{_CLASSES}.3", *_ANSWERS),
    )


def _loaded(config: FastestDetModel, model: FastestDet) -> None:
    """Turn the first layer of a checkpoint that reads blue first: it then reads red first.

    before: y = conv(x[:, [2, 1, 0]], w)
    after:  y = conv(x, w[:, [2, 1, 0]])
    """
    if config.colours == "bgr":
        first = model.backbone.first_conv[0]
        assert isinstance(first, nn.Conv2d)
        with torch.no_grad():
            first.weight.copy_(first.weight.flip(1))


def _start(model: FastestDet) -> None:
    """Few places hold an object: at first none should claim to."""
    last = model.detect_head.obj_layers.conv5x5[4]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.constant_(last.bias, -2.0)


FAMILY = Family(build=build, structure=_structure, loaded=_loaded, start=_start)
