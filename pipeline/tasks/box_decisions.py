"""What a detector decides at every place, and how far its numbers are from deciding otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.tasks.box_code import BOX, CLASS_POWER, CLASSES, OBJECT_POWER

_HALF = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """Of every place of maps.

    Attributes:
        classes: int64 [N, height, width], of the box that is told of; -1 without one.
        leads: float32, likewise: how far two numbers are to come closer for another decision, as a
            number from the threshold moves with one number alone: twice that.
    """

    classes: Tensor
    leads: Tensor


def decisions(maps: Tensor, threshold: float) -> Decisions:
    """What is told of every place, of maps float32 [N, 1 + 4 + classes, height, width].

    Args:
        maps: of a network.
        threshold: score from which on a box is told of.
    """
    shares = maps[:, CLASSES].double().log_softmax(1)
    best, number = shares.max(1)
    objects = maps[:, 0].double()
    score = OBJECT_POWER * torch.nn.functional.logsigmoid(objects) + CLASS_POWER * best
    told = score >= math.log(threshold)
    # By how much a score's logarithm grows at most where each number moves by one.
    slope = OBJECT_POWER * (-objects).sigmoid() + 2 * CLASS_POWER * (1 - best.exp())
    leads = 2 * (score - math.log(threshold)).abs() / slope.clamp(min=1e-9)
    if shares.shape[1] > 1:
        first, second = maps[:, CLASSES].double().topk(2, 1).values.unbind(1)
        leads = torch.where(told, torch.minimum(leads, first - second), leads)
    return Decisions(classes=torch.where(told, number, -1), leads=leads.float())


def apart(one: Decisions, other: Decisions, maps: Tensor, others: Tensor) -> Tensor:
    """How far the numbers of a place are from the other decision; 0 where the boxes are the same.

    Args:
        one: that should be.
        other: that are.
        maps: float32 [N, 1 + 4 + classes, height, width], those of `one`.
        others: those of `other`.

    Returns:
        float32 [N, height, width].
    """
    differs = one.classes != other.classes
    both = ~differs & (one.classes >= 0)
    both &= _overlap(maps[:, BOX], others[:, BOX]) < _HALF
    # The lead is to the nearest decision, which need not be the one that was come to.
    renamed = differs & (one.classes >= 0) & (other.classes >= 0)
    numbers = maps[:, CLASSES]
    lead = one.leads.clamp(min=1e-9)
    if renamed.any():
        own, theirs = (
            numbers.gather(1, each.classes.clamp(min=0)[:, None])[:, 0] for each in (one, other)
        )
        lead = torch.where(renamed, (own - theirs).clamp(min=1e-9), lead)
    moved = (maps[:, BOX] - others[:, BOX]).abs().amax(1)
    return torch.where(differs, lead, torch.where(both, moved.clamp(min=1e-9), 0.0))


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of the boxes of equal places, of numbers [N, 4, height, width]."""
    height, width = one.shape[-2:]
    size = torch.tensor([width, height], dtype=one.dtype, device=one.device).view(1, 2, 1, 1)
    ends = []
    for numbers in (one, other):
        middle, half = numbers[:, :2].tanh() / size, numbers[:, 2:].sigmoid() / 2
        ends.append((middle - half, middle + half))
    (low, high), (their_low, their_high) = ends
    sides = (torch.minimum(high, their_high) - torch.maximum(low, their_low)).clamp(min=0)
    common = sides.prod(1)
    areas = sum((upper - lower).prod(1) for lower, upper in ends)
    return common / (areas - common)
