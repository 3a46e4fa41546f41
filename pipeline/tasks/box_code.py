"""From a detector's raw maps to boxes: the reference, which needs numpy alone.

    boxes, scores, classes = boxes_of(maps, least=0.5, overlap=0.45)

Maps are float32 [1 + 4 + classes, height, width]: whether there is an object, its box, and what it
is, for every place of a grid over the image. Of the numbers o, x, y, w, h and c of a place (row,
column) become

    score = sigmoid(o)^0.6 * max(softmax(c))^0.4
    middle = ((column + tanh(x)) / width, (row + tanh(y)) / height)
    sides = (sigmoid(w), sigmoid(h))

all of them shares of the image. Of boxes of one class that overlap, the one with the best score
stays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
OBJECT, BOX, CLASSES = slice(0, 1), slice(1, 5), slice(5, None)
"""Channels of the maps."""
OBJECT_POWER, CLASS_POWER = 0.6, 0.4
"""Shares of a score's logarithm."""


def sigmoid(x: Numbers) -> Numbers:
    """1 / (1 + exp(-x)), without an overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def softmax(x: Numbers) -> Numbers:
    """Shares along the first axis."""
    raised = np.exp(x - x.max(0))
    return np.asarray(raised / raised.sum(0))


def scores_of(maps: NDArray[np.float32]) -> tuple[Numbers, NDArray[np.int64]]:
    """The score of every place, and its class: [height, width] each."""
    wide = maps.astype(np.float64)
    shares = softmax(wide[CLASSES])
    score = sigmoid(wide[0]) ** OBJECT_POWER * shares.max(0) ** CLASS_POWER
    return np.asarray(score), shares.argmax(0).astype(np.int64)


def places_of(maps: NDArray[np.float32]) -> Numbers:
    """The box of every place, [height, width, 4]: left, top, right, bottom, shares of the image.

    They may reach beyond the image.
    """
    _, height, width = maps.shape
    x, y, w, h = maps[BOX].astype(np.float64)
    rows, columns = np.mgrid[:height, :width]
    middle_x, middle_y = (columns + np.tanh(x)) / width, (rows + np.tanh(y)) / height
    half_w, half_h = sigmoid(w) / 2, sigmoid(h) / 2
    sides = (middle_x - half_w, middle_y - half_h, middle_x + half_w, middle_y + half_h)
    return np.stack(sides, axis=-1)


def overlaps(one: Numbers, others: Numbers) -> Numbers:
    """Intersection over union of boxes [M, 4] and [N, 4]: [M, N]."""
    least, most = one[:, None], others[None]
    sides = np.minimum(least[..., 2:], most[..., 2:]) - np.maximum(least[..., :2], most[..., :2])
    common = sides.clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1) for boxes in (least, most)]
    return np.asarray(common / np.maximum(areas[0] + areas[1] - common, 1e-12))


def best_ones(
    boxes: Numbers, scores: Numbers, classes: NDArray[np.int64], overlap: float
) -> NDArray[np.int64]:
    """Rows of the boxes that stay, the best first: non-maximum suppression of each class.

    Args:
        boxes: [N, 4].
        scores: [N]; of equal ones the first counts as better.
        classes: [N].
        overlap: intersection over union above which the worse of two goes.
    """
    order = np.argsort(-scores, kind="stable")
    crossed = overlaps(boxes, boxes) > overlap
    crossed &= classes[:, None] == classes[None]
    gone = np.zeros(len(boxes), np.bool_)
    kept = []
    for row in order.tolist():
        if not gone[row]:
            kept.append(row)
            gone |= crossed[row]
    return np.array(kept, np.int64)


def boxes_of(
    maps: NDArray[np.float32], least: float, overlap: float
) -> tuple[Numbers, Numbers, NDArray[np.int64]]:
    """The boxes [N, 4] that maps say, with their scores and classes [N], the best first.

    Args:
        maps: of one image.
        least: score from which on a box counts.
        overlap: as of `best_ones`.
    """
    scores, classes = scores_of(maps)
    chosen = scores >= least
    boxes, found, named = places_of(maps)[chosen], scores[chosen], classes[chosen]
    rows = best_ones(boxes, found, named, overlap)
    return boxes[rows], found[rows], named[rows]
