"""A small network that learns from another one."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compress.training.distill import (
    AdjustLoss,
    distillation,
)
from pipeline.networks.resnest.network import ResNeSt
from pipeline.networks.rewrites import Normalization
from pipeline.recipe.training import DistillConfig, TrainConfig
from pipeline.tasks.images.pixels import normalize
from tests.making.networks import (
    dataset,
)

SOFT = DistillConfig(weight=1.0)
FEATURES = DistillConfig(weight=0.0, features=1.0)
BOTH = DistillConfig(weight=0.5, features=1.0)
STRONG = DistillConfig(weight=1.0, features=200.0)
LABEL_LOSS = torch.tensor(1.25)
# What camera pixels are to the images of `dataset`.
NORMALIZATION = Normalization(mean=dataset().mean, std=dataset().std)


def distilled(
    student: nn.Module,
    teacher: ResNeSt,
    config: DistillConfig,
    normalization: Normalization | None = None,
) -> AbstractContextManager[AdjustLoss]:
    """Taught at the ends of all the teacher's stages."""
    return distillation(student, teacher, config, teacher.stage_names(), normalization)


def loss_of(student: Any, teacher: ResNeSt, config: DistillConfig, x: Tensor) -> Tensor:
    """The adjusted loss of one batch, that of the labels being 0."""
    with distilled(student, teacher, config) as adjust_loss:
        return adjust_loss(x, student(x), torch.tensor(0.0))


def training(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 1, "batch_size": 8, "learning_rate": 0.05} | changes)


def seen() -> Tensor:
    """The images that `teach` trains on."""
    return normalize(dataset().train.source, NORMALIZATION.mean, NORMALIZATION.std)
