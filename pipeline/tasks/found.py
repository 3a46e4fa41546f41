"""Boxes that a detector finds in images, and which objects they have found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.tasks.box_code import boxes_of, overlaps
from pipeline.tasks.images.boxes import CLASS, SIDES, counted, targets_of

HALF = 0.5
"""Overlap, as intersection over union, from which on a box has found an object."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The boxes of one image, the best first.

    Attributes:
        boxes: [N, 4]: left, top, right, bottom, shares of the image.
        scores: [N].
        classes: [N].
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]

    def above(self, threshold: float) -> Found:
        """Those with a score of at least `threshold`."""
        count = int((self.scores >= threshold).sum())
        return Found(
            boxes=self.boxes[:count], scores=self.scores[:count], classes=self.classes[:count]
        )


def found_in(maps: Tensor, least: float, overlap: float) -> list[Found]:
    """The boxes of every image; see `boxes_of`.

    Args:
        maps: [N, 1 + 4 + classes, height, width].
        least: score from which on a box counts.
        overlap: of two boxes of a class from which on the worse one goes.
    """
    found = []
    for one in maps.float().numpy():
        boxes, scores, classes = boxes_of(one, least, overlap)
        found.append(Found(boxes=boxes, scores=scores, classes=classes))
    return found


def rows_of(found: list[Found]) -> Tensor:
    """Boxes as rows float32 [N, M, 6]: sides, class and score, as targets have their objects."""
    return targets_of(
        [
            torch.from_numpy(np.column_stack([one.boxes, one.classes, one.scores])).float()
            for one in found
        ]
    )


def partners(
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    others: NDArray[np.float64],
    of_others: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Which of `others` each box has for its own, -1 where none: of its class, by half.

    Each takes the one that it overlaps most, of those that none before it took.
    """
    crossed = overlaps(boxes, others)
    crossed[classes[:, None] != of_others[None]] = 0
    taken = np.full(len(boxes), -1, np.int64)
    for row in range(len(boxes)):
        if len(others) and crossed[row].max() >= HALF:
            best = int(crossed[row].argmax())
            taken[row] = best
            crossed[:, best] = 0
    return taken


def objects_found(found: list[Found], targets: Tensor) -> Tensor:
    """1 for every object that a box has found, uint8 [N, M]; ignored ones and padding are 0."""
    flags = torch.zeros(targets.shape[:2], dtype=torch.uint8)
    for image, one in enumerate(found):
        rows = counted(targets[image]).nonzero().flatten()
        truth = targets[image][rows].double().numpy()
        which = partners(one.boxes, one.classes, truth[:, SIDES], truth[:, CLASS].astype(np.int64))
        flags[image, rows[torch.from_numpy(which[which >= 0])]] = 1
    return flags
