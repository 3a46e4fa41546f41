"""Networks for `model.name: python:nets.py:FUNCTION`; the folder `site` beside it has packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

sys.path.insert(0, str(Path(__file__).parent / "site"))


def lite0(num_classes: int) -> nn.Module:
    """EfficientNet-Lite0."""
    return _lite("efficientnet-lite0", num_classes)


def lite1(num_classes: int) -> nn.Module:
    """EfficientNet-Lite1."""
    return _lite("efficientnet-lite1", num_classes)


def lite2(num_classes: int) -> nn.Module:
    """EfficientNet-Lite2."""
    return _lite("efficientnet-lite2", num_classes)


def _lite(name: str, num_classes: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    net: nn.Module = EfficientNet.from_name(name, num_classes=num_classes)
    return net


def mobilenet_v2(num_classes: int) -> nn.Module:
    """torchvision's, padded as TensorFlow does: at stride 2 at the bottom and right alone."""
    net = models.mobilenet_v2(num_classes=num_classes)
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2):
            conv.padding = (0, 0)
            conv.register_forward_pre_hook(_padded)
    return net


def _padded(conv: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
    return (torch.nn.functional.pad(given[0], (0, 1, 0, 1)),)
