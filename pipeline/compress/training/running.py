"""A training that runs: what stays the same from epoch to epoch, and what changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.resume import Saves
from pipeline.recipe.training import TrainConfig
from pipeline.tasks.images.batches import ProcessShare
from pipeline.tasks.images.dataset import Dataset

if TYPE_CHECKING:
    from pipeline.tasks.task import Loss, Mix, TaskModule


@dataclass(frozen=True, kw_only=True)
class Training:
    """What stays the same from epoch to epoch.

    `shared` is the model, its gradients those of all processes; `share`, what this process takes
    of every batch, a part at a time.
    """

    model: nn.Module
    shared: nn.Module
    dataset: Dataset
    config: TrainConfig
    hooks: Hooks
    share: ProcessShare
    optimizer: torch.optim.Optimizer
    task: TaskModule
    criterion: Loss
    generator: torch.Generator
    steps_per_epoch: int
    autocast: Callable[[], AbstractContextManager[None]]
    mix: Mix | None
    average: AveragedModel | None
    saves: Saves | None


@dataclass(kw_only=True)
class Progress:
    """What has been done so far; with the network and the optimizer, all that changes.

    Attributes:
        step: steps that are behind.
        order: of the images in this epoch.
        loss: sum over the images of this epoch so far.
        right: images of this epoch that were answered right.
        seen: images of this epoch.
        rate: learning rate of the last step.
        curve: of the epochs that are behind.
    """

    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    loss: float = 0.0
    right: float = 0.0
    seen: int = 0
    rate: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
