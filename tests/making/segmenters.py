"""Narrow networks that give a class to every place, batch norms as after training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.networks.segmenter.family import FAMILY
from pipeline.networks.segmenter.network import Segmenter
from pipeline.recipe.segmenter import SegmenterModel
from tests.making.networks import randomise

SIZE = (32, 64)
CLASSES = 5
RESNEST = {"backbone": "resnest14", "backbone_arguments": {"width_multiplier": 0.125}}
RESNET = {"backbone": "timm:test_resnet"}
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"name": "unet"} | RESNEST,
    "fpn": {"name": "fpn", "stride": 2} | RESNET,
    "deeplabv3": {"name": "deeplabv3", "stride": 8} | RESNEST,
    "deeplabv3plus": {"name": "deeplabv3plus", "output_stride": 8, "stride": 1} | RESNET,
}
"""Every decoder, and every way in which an image is enlarged."""


def config(**keys: Any) -> SegmenterModel:
    """The `model` of a recipe."""
    return SegmenterModel.model_validate({"input_size": SIZE, "decoder_channels": 8} | keys)


def segmenter(asked: SegmenterModel) -> Segmenter:
    """The network, in evaluation mode."""
    torch.manual_seed(0)
    model = FAMILY.build(asked, CLASSES).eval()
    randomise(model)
    return model


def images(count: int, seed: int = 1) -> Tensor:
    """(count, 3, *SIZE) of noise."""
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
