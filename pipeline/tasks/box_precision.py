"""Average precision of boxes, as COCO counts it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.tasks.found import Found
from pipeline.tasks.images.boxes import CLASS, IGNORED, SIDES, there

_MOST = 100
"""Boxes of an image that count, the best ones; as COCO has it."""


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """Average precisions of one test set.

    Attributes:
        ap50: where boxes overlap by half, the mean over the classes that are there.
        ap: the mean over overlaps from 0.50 to 0.95.
        by_class: as `ap50`, by class; None of one that is not there.
    """

    ap50: float
    ap: float
    by_class: tuple[float | None, ...]


def precisions(found: Sequence[Found], targets: Tensor, classes: int) -> Precisions | None:
    """Average precisions of boxes; None where there is no object at all.

    COCO's own counts an image's 100 best boxes, takes the precision at 101 recalls, and leaves out
    what is matched by an ignored object. Areas play no part.

    Args:
        found: of every image, down to low scores.
        targets: float32 [N, M, 6].
        classes: number of them.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, boxes = COCO(), COCO()
    truth.dataset, boxes.dataset = _truth(targets, classes), _found(found, classes)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        truth.createIndex()
        boxes.createIndex()
        judge = COCOeval(truth, boxes, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [_MOST]
        judge.evaluate()
        judge.accumulate()
    # Overlaps, recalls, classes; -1 where a class is not there.
    precision = judge.eval["precision"][:, :, :, 0, 0]
    has = (precision > -1).all((0, 1))
    if not has.any():
        return None
    halves = precision[0].mean(0)
    return Precisions(
        ap50=_share(halves[has].mean()),
        ap=_share(precision[:, :, has].mean()),
        by_class=tuple(
            _share(one) if known else None for one, known in zip(halves, has, strict=True)
        ),
    )


def _share(value: float) -> float:
    """Without what pycocotools adds to what it divides by, so that all right is 1."""
    return round(float(value), 12)


def _categories(classes: int) -> list[dict[str, Any]]:
    return [{"id": number, "name": str(number)} for number in range(classes)]


def _truth(targets: Tensor, classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(targets):
        for row in rows[there(rows)].double().numpy():
            annotations.append(
                _annotation(row[SIDES], len(annotations), image, int(row[CLASS]))
                | {"iscrowd": int(row[IGNORED])}
            )
    return {
        "images": [{"id": image} for image in range(len(targets))],
        "categories": _categories(classes),
        "annotations": annotations,
    }


def _found(found: Sequence[Found], classes: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, one in enumerate(found):
        for box, score, name in zip(one.boxes, one.scores, one.classes, strict=True):
            annotations.append(
                _annotation(box, len(annotations), image, int(name)) | {"score": float(score)}
            )
    return {
        "images": [{"id": image} for image in range(len(found))],
        "categories": _categories(classes),
        "annotations": annotations,
    }


def _annotation(sides: Any, number: int, image: int, name: int) -> dict[str, Any]:
    """One box; numbers begin at 1, since 0 counts as none there."""
    left, top, right, bottom = (float(side) for side in np.asarray(sides))
    return {
        "id": number + 1,
        "image_id": image,
        "category_id": name,
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
    }
