"""Learning rates, optimizers and batches of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.training import TrainConfig


def learning_rate_factor(
    step: int, steps: int, warmup: int, milestones: Sequence[int] = ()
) -> float:
    """Linear warm-up over `warmup` steps, then half a cosine down to zero (paper, section 5.1).

    With `milestones`, a tenth after each of these steps in place of the cosine.
    """
    if step < warmup:
        return (step + 1) / warmup
    if milestones:
        return float(0.1 ** sum(step >= milestone for milestone in milestones))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def highest_rate(config: TrainConfig) -> float:
    """The learning rate after the warm-up; in proportion to the batch (paper, section 5.1)."""
    if config.learning_rate_batch is None:
        return config.learning_rate
    return config.learning_rate * config.batch_size / config.learning_rate_batch


def optimizer_for(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; no weight decay on biases and batch normalisation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.dim() > 1]
    plain = [p for p in trained if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups,
        lr=highest_rate(config),
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        foreach=True,
    )


def batches_per_epoch(images: int, batch_size: int, parts: int = 1) -> int:
    """Steps of one epoch over so many images, each of them in so many parts."""
    whole, rest = divmod(images, batch_size)
    return whole + (rest >= 2 * parts)  # one image alone cannot train batch normalisation


TrainingPart = tuple[Tensor, Tensor]
"""Images (part, channels, height, width) and their targets (part, ...)."""


def at_size(
    parts: Sequence[TrainingPart],
    config: TrainConfig,
    place: tuple[int, int],
    generator: torch.Generator,
) -> Sequence[TrainingPart]:
    """The images at the size that the recipe gives for a step; `place` is (step, steps)."""
    if not config.sizes:
        return parts
    step, steps = place
    _, channels, *sides = parts[0][0].shape
    whole = InputShape(channels=channels, height=sides[0], width=sides[1])
    shape = whole.scaled(config.sizes[step * len(config.sizes) // steps])
    height, width = shape.height, shape.width
    if config.shrink == "resize":

        def shrunk(images: Tensor) -> Tensor:
            return functional.interpolate(images, (height, width), mode="bilinear", antialias=True)

    else:
        top, left = (
            int(torch.randint(most + 1, (1,), generator=generator))
            for most in (whole.height - height, whole.width - width)
        )

        def shrunk(images: Tensor) -> Tensor:
            return images[:, :, top : top + height, left : left + width]

    return [(shrunk(images), targets) for images, targets in parts]
