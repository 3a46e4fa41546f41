"""Class maps: which class is named for every pixel, and what comes of comparing maps.

Answers are logits (images, classes, h, w) for squares of `stride` pixels. They are scaled to the
input's size, bilinear and in float32, before the largest names the class; of equal ones the first.
Some images at a time: the maps of a test set in float can be gigabytes, and the classes are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.tasks.images.preparation import VOID
from pipeline.tasks.map_accuracy import MapAccuracy, map_accuracy

_NUMBERS_AT_A_TIME = 2**24
"""64 MB of float32."""


def at_input(answers: Tensor, stride: int) -> Tensor:
    """Answers float [B, classes, h, w] for every pixel: [B, classes, stride h, stride w].

    A bundle's contract says how: each value is the one of its square's middle, linear between
    middles, constant outside of the outermost.
    """
    if stride == 1:
        return answers.float()
    size = [stride * side for side in answers.shape[-2:]]
    return F.interpolate(answers.float(), size, mode="bilinear", align_corners=False)


def refuse_other_places(answers: Tensor, masks: Tensor, stride: int) -> None:
    """Refuse answers [B, classes, h, w] that are not for every square of masks [B, H, W].

    Raises:
        InputError: they are for others, or are no maps.
    """
    height, width = masks.shape[-2:]
    if answers.dim() == 4 and tuple(answers.shape[-2:]) == (height // stride, width // stride):
        if height % stride == width % stride == 0:
            return
        raise InputError(
            f"model.input_size: got {height} x {width}; with task.stride {stride} both must be "
            f"multiples of {stride}"
        )
    shape = " x ".join(map(str, answers.shape[1:]))
    raise InputError(
        f"task.stride: got {stride}; the network gives {shape} for images of {height} x {width} "
        f"pixels, and must give (classes) x {height // stride} x {width // stride}; give it the "
        "stride that the network has"
    )


def in_parts(answers: Tensor, stride: int) -> Iterator[slice]:
    """Rows of answers, as many at a time as are not too many at the input's size."""
    each = max(1, answers[:1].numel() * stride * stride)
    step = max(1, _NUMBERS_AT_A_TIME // each)
    for begin in range(0, len(answers), step):
        yield slice(begin, begin + step)


def class_maps(answers: Tensor, stride: int) -> Tensor:
    """The class of every pixel: uint8 [N, H, W]."""
    parts = [at_input(answers[rows], stride) for rows in in_parts(answers, stride)]
    # torch promises the index of the first of equal values.
    return torch.cat([part.argmax(1).to(torch.uint8) for part in parts])


def counted(answers: Tensor, masks: Tensor, stride: int) -> Tensor:
    """What was named for the pixels of each image: int32 [N, 2 classes].

    Pixels that each class was named for, then those that have it and were given it; void left out.

    Raises:
        InputError: answers are for other places than masks have.
    """
    refuse_other_places(answers, masks, stride)
    classes, found = answers.shape[1], []
    for rows in in_parts(answers, stride):
        for named, mask in zip(class_maps(answers[rows], stride), masks[rows], strict=True):
            known = mask != VOID
            of_each = torch.bincount(named[known].int(), minlength=classes)
            right = torch.bincount(named[known & (named == mask)].int(), minlength=classes)
            found.append(torch.cat([of_each, right]).to(torch.int32))
    return torch.stack(found)


def pixels_of(masks: Tensor, classes: int) -> Tensor:
    """Pixels of each image that have each class: int32 [N, classes]."""
    counts = [torch.bincount(mask.flatten().int(), minlength=256)[:classes] for mask in masks]
    return torch.stack(counts).to(torch.int32)


def measured(answers: Tensor, masks: Tensor, stride: int) -> MapAccuracy | None:
    """The metric of answers to the images of masks, by torchmetrics; None where all is void.

    Raises:
        InputError: answers are for other places than masks have.
    """
    # It takes seconds to import.
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    refuse_other_places(answers, masks, stride)
    classes = answers.shape[1]
    whole = torch.zeros(classes, classes, dtype=torch.int64)
    for rows in in_parts(answers, stride):
        whole += multiclass_confusion_matrix(
            class_maps(answers[rows], stride).long(),
            masks[rows].long(),
            classes,
            ignore_index=VOID,
            validate_args=False,
        )
    return map_accuracy(
        whole.sum(1).tolist(), whole.sum(0).tolist(), whole.diag().tolist(), len(masks)
    )


def leads(found: Tensor, wanted: Tensor, stride: int) -> list[float]:
    """Of every pixel with another class, how far the wanted one's answer leads the found one's."""
    apart: list[float] = []
    for rows in in_parts(wanted, stride):
        whole = at_input(wanted[rows], stride)
        first, other = whole.argmax(1), at_input(found[rows], stride).argmax(1)
        moved = first != other
        if moved.any():
            ahead = whole.gather(1, first[:, None]) - whole.gather(1, other[:, None])
            apart += ahead[:, 0][moved].tolist()
    return apart
