"""One batch: forward and backward of the parts of it that this process has."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.base import torchrun
from pipeline.base.torchrun import device
from pipeline.compress.training.running import Training
from pipeline.compress.training.schedule import TrainingPart
from pipeline.compress.training.small_maps import ByProducts


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of one batch: sums over its images, in whatever process they were."""

    loss: float
    right: float
    images: int


def forward_backward(training: Training, parts: Sequence[TrainingPart]) -> Done:
    """Forward and backward of this process's parts of a batch; the gradients are those of all."""
    own = sum(len(targets) for _, targets in parts)
    images = int(torchrun.summed(torch.tensor(own, device=device())))
    loss, right = 0.0, 0.0
    for position, part in enumerate(parts):
        waits = position + 1 < len(parts)
        with torchrun.gradients_later(training.shared) if waits else nullcontext():
            # Processes share the mean of their gradients, and parts may differ by an image.
            weight = len(part[1]) * torchrun.count() / images
            answers, its_loss = _part(training, part, weight)
        loss += its_loss * len(part[1])
        right += training.task.right(answers.cpu(), part[1])
    found = torchrun.summed(torch.tensor([loss, right], dtype=torch.float64, device=device()))
    return Done(loss=float(found[0]), right=float(found[1]), images=images)


def _part(training: Training, part: TrainingPart, weight: float) -> tuple[Tensor, float]:
    """Forward and backward of a part: its answers and its loss, of which `weight` counts."""
    place = device()
    images, targets = part
    if training.mix is not None:
        images, targets = training.mix(*part)
    images = images.to(place, memory_format=torch.channels_last)
    shared_norms = torchrun.count() > 1 and training.config.sync_bn
    with (
        training.autocast(),
        ByProducts(),
        torchrun.SharedStatistics() if shared_norms else nullcontext(),
    ):
        answers = training.shared(images).float()
        loss = training.criterion(answers, targets.to(place))
        loss = training.hooks.adjust_loss(images, answers, loss)
    torch.autograd.backward(loss * weight)
    return answers.detach(), float(loss.detach())
