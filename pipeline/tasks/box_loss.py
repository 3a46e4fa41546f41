"""What the training of a detector of one scale minimises.

For every object the four places around its middle are to find it: that of its cell, and its
neighbours to the right and below, since a box's middle is a place moved by up to a cell either way.
With u the overlap of a place's box and its object's,

    8 * mean(1 - CIoU) + 16 * mean(weight * smooth L1(sigmoid(o), u, or 0 without an object))
    + mean(-log softmax(c)[class])

where class and object are learned at the places whose overlap is above the mean: those are the ones
that fit. Weights make the places with an object count a quarter of all, and the others three.

CIoU: Zheng et al. 2020, https://arxiv.org/abs/1911.08287. The places, the weights and the overlap
as the objects' target are FastestDet's (https://github.com/dog-qiuqiu/FastestDet).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks.box_code import BOX, CLASSES
from pipeline.tasks.images.boxes import CLASS, SIDES, counted

BOX_WEIGHT, OBJECT_WEIGHT = 8.0, 16.0
_WITH, _WITHOUT = 0.25, 0.75
_TINY = 1e-7
_HALF = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Places that are to find an object, P of them.

    Attributes:
        image: int64 [P].
        row: int64 [P].
        column: int64 [P].
        sides: of the object: float [P, 4], left, top, right, bottom, shares of the image.
        number: of its class: int64 [P].
    """

    image: Tensor
    row: Tensor
    column: Tensor
    sides: Tensor
    number: Tensor


def places_around(targets: Tensor, height: int, width: int, *, nearest: bool = False) -> Places:
    """The places around the middles of objects.

    Args:
        targets: float [N, M, 6].
        height: of the map.
        width: of the map.
        nearest: only the nearest one of each object.
    """
    image, place = counted(targets).nonzero().unbind(1)
    rows = targets[image, place]
    sides = rows[:, SIDES]
    middle = (sides[:, :2] + sides[:, 2:]) / 2
    size = torch.tensor([width, height], device=targets.device)
    if nearest:
        around = (middle * size).round()[:, None].minimum(size - 1)
    else:
        steps = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=targets.device)
        around = (middle * size).floor()[:, None] + steps
    inside = ((around >= 0) & (around < size)).all(-1)
    which, step = inside.nonzero().unbind(1)
    column, row = around[which, step].long().unbind(1)
    return Places(
        image=image[which],
        row=row,
        column=column,
        sides=sides[which],
        number=rows[which, CLASS].long(),
    )


def boxes_at(answers: Tensor, at: Places) -> Tensor:
    """The boxes of places: float [P, 4], left, top, right, bottom."""
    height, width = answers.shape[-2:]
    x, y, w, h = answers[:, BOX].movedim(1, -1)[at.image, at.row, at.column].unbind(1)
    middle_x, middle_y = (at.column + x.tanh()) / width, (at.row + y.tanh()) / height
    half_w, half_h = w.sigmoid() / 2, h.sigmoid() / 2
    sides = (middle_x - half_w, middle_y - half_h, middle_x + half_w, middle_y + half_h)
    return torch.stack(sides, 1)


def overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes [P, 4] and [P, 4]: [P]."""
    sides = torch.minimum(boxes[:, 2:], others[:, 2:]) - torch.maximum(boxes[:, :2], others[:, :2])
    common = sides.clamp(min=0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return common / (areas[0] + areas[1] - common + _TINY)


def complete_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """CIoU of boxes [P, 4] and [P, 4]: the overlap, less what middles and proportions are apart.

    The weight of the proportions is not learned from (section 3.2 of the paper).
    """
    found = overlap(boxes, others)
    least = torch.minimum(boxes[:, :2], others[:, :2])
    most = torch.maximum(boxes[:, 2:], others[:, 2:])
    diagonal = (most - least).square().sum(1) + _TINY
    middles = ((boxes[:, :2] + boxes[:, 2:] - others[:, :2] - others[:, 2:]) / 2).square().sum(1)
    angles = [
        torch.atan((each[:, 2] - each[:, 0]) / (each[:, 3] - each[:, 1] + _TINY))
        for each in (boxes, others)
    ]
    proportion = 4 / math.pi**2 * (angles[0] - angles[1]).square()
    with torch.no_grad():
        weight = proportion / (1 - found + proportion + _TINY)
    return found - middles / diagonal - weight * proportion


class BoxLoss(nn.Module):
    """The loss of answers (batch, 1 + 4 + classes, height, width) and targets [batch, M, 6]."""

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch; without any object, of objects alone."""
        height, width = answers.shape[-2:]
        at = places_around(targets, height, width)
        objects = answers[:, 0].sigmoid()
        wanted = torch.zeros_like(objects)
        weight = torch.full_like(objects, _WITHOUT)
        rest = answers.sum() * 0.0  # no object, no gradient, but a graph
        if len(at.image):
            boxes = boxes_at(answers, at)
            found = overlap(boxes, at.sides)
            fits = found.detach() >= found.detach().mean()
            learned = Places(**{name: value[fits] for name, value in vars(at).items()})
            spot = (learned.image, learned.row, learned.column)
            wanted = wanted.index_put(spot, found.detach()[fits])
            counts = torch.bincount(learned.image, minlength=len(answers)).clamp(min=1)
            share = _WITH * height * width / counts.to(weight.dtype)
            weight = weight.index_put(spot, share[learned.image])
            logits = answers[:, CLASSES].movedim(1, -1)[spot]
            kind = F.cross_entropy(logits, learned.number, label_smoothing=self.smoothing)
            box = (1 - complete_overlap(boxes, at.sides)).mean()
            rest = BOX_WEIGHT * box + kind
        apart = F.smooth_l1_loss(objects, wanted, reduction="none")
        return OBJECT_WEIGHT * (weight * apart).mean() + rest


@torch.no_grad()
def hits(answers: Tensor, targets: Tensor) -> float:
    """Images, each as the share of its objects that the place nearest to the middle finds.

    A place finds an object whose class it names, and that its box overlaps by half. An image
    without objects counts as one.
    """
    at = places_around(targets, *answers.shape[-2:], nearest=True)
    named = answers[:, CLASSES].argmax(1)[at.image, at.row, at.column]
    right = (named == at.number) & (overlap(boxes_at(answers, at), at.sides) >= _HALF)
    whole = torch.bincount(at.image, minlength=len(answers))
    found = torch.bincount(at.image, weights=right.double(), minlength=len(answers))
    return float(torch.where(whole > 0, found / whole.clamp(min=1), 1.0).sum())
