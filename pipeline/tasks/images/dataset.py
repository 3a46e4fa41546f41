"""A dataset as the pipeline uses it: fixed splits and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.tasks.images.pixels import Images, fits_in_memory, is_mask

Digests = NDArray[np.uint8]
"""SHA-256 of the content of images: [N, 32]."""
_LABELS_AT_A_TIME = 2**16
Channels = tuple[float, ...]
"""A number for each channel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A dataset as the pipeline uses it.

    Attributes:
        name: the kind of data of the recipe.
        classes: class names in the order of the labels.
        train: images to train on; none of them is in `calibration`. There may be none.
        calibration: images that set activation ranges, classes mixed, in a fixed order. Their
            labels mean nothing where they come of a folder of their own.
        tests: test sets by name.
        mean: per channel, scale 0 to 1.
        std: per channel, scale 0 to 1.
        sha256: of class names, labels and image content of every set, in order. Pixels count
            as stored (before any resize), files by their bytes.
        training_sha256: of the same, without the test sets: what training and calibration see.
        notes: what the user is to know about the loading, a line each.
        damaged: files that were left out since they cannot be decoded, by set (`train`, and those
            of `tests`), where there are any.
        passed_over: files that are not read as images, by suffix.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    calibration: Images
    tests: dict[str, Images]
    mean: Channels
    std: Channels
    sha256: str
    training_sha256: str
    notes: tuple[str, ...] = ()
    damaged: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)


def pixel_values(dataset: Dataset) -> Dataset:
    """The same dataset with batches of plain pixel values 0..255, as a camera gives them.

    They are floats that miss the whole number by 2e-5 at most.
    """
    channels = len(dataset.mean)
    return replace(dataset, mean=(0.0,) * channels, std=(1 / 255,) * channels)


def draw_stratified(labels: Tensor, count: int, seed: int, *, keep: int = 1) -> Tensor:
    """Indices of `count` images, drawn from the classes in proportion to what they can spare.

    A class of n images can spare n - `keep`, so with 1 no class is used up. Rounding is by largest
    remainder. The result, int64 [count], is in mixed order.

    Args:
        labels: int64 [N].
        count: 0 to what all classes can spare.
        seed: the same seed gives the same draw.
        keep: images of every class that are not drawn.

    Raises:
        ValueError: more images are asked for than the classes can spare.
    """
    generator = torch.Generator().manual_seed(seed)
    spare = (torch.bincount(labels) - keep).clamp(min=0)
    total = int(spare.sum())
    if count > total:
        raise ValueError(f"count: got {count}; at most {total} can be drawn")
    quota = count * spare // max(total, 1)
    remainder = count * spare % max(total, 1)
    leftover = count - int(quota.sum())
    quota[remainder.argsort(descending=True, stable=True)[:leftover]] += 1
    picks = []
    sizes = torch.bincount(labels).tolist()
    by_class = torch.split(labels.argsort(stable=True), sizes)
    for members, number in zip(by_class, quota.tolist(), strict=True):
        picks.append(members[torch.randperm(len(members), generator=generator)[:number]])
    drawn = torch.cat(picks)
    return drawn[torch.randperm(len(drawn), generator=generator)]


def draw(count: int, wanted: int, seed: int) -> Tensor:
    """Indices of `wanted` of `count` images, int64, in mixed order; of a seed always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]


def sample_rows(images: Images, most: int) -> Tensor:
    """Rows of a set that stand for all of it, int64, in order: all where there are `most` or fewer.

    Of more, `most` are drawn, of a set always the same ones: in proportion to the classes where an
    image has one, else evenly from all.
    """
    if len(images) <= most:
        return torch.arange(len(images))
    if images.labels.dim() == 1:
        return draw_stratified(images.labels, most, 0, keep=0).sort().values
    return draw(len(images), most, 0).sort().values


def others(count: int, drawn: Tensor) -> Tensor:
    """The indices below `count` that were not drawn, in order."""
    left = torch.ones(count, dtype=torch.bool)
    left[drawn] = False
    return left.nonzero().flatten()


def split_calibration(labels: Tensor, wanted: int, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on and of those that calibrate."""
    classes = int((torch.bincount(labels) > 0).sum())
    most = len(labels) - classes
    if wanted > most:
        raise InputError(
            f"data.calibration_images: got {wanted}; {where} has {len(labels)} images in "
            f"{classes} classes and keeps one of each for training, so at most {most}; "
            "lower it, add images or give data.calibration"
        )
    drawn = draw_stratified(labels, wanted, seed)
    return others(len(labels), drawn), drawn


_LEFT_TO_TRAIN = 2
"""Images without a class of their own: batch normalisation wants several."""


def split_evenly(targets: Tensor, wanted: int, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """The same of images that have no class of their own, drawn from all alike."""
    most = len(targets) - _LEFT_TO_TRAIN
    if wanted > most:
        raise InputError(
            f"data.calibration_images: got {wanted}; {where} has {len(targets)} images and keeps "
            f"{_LEFT_TO_TRAIN} for training, so at most {most}; lower it, add images or give "
            "data.calibration"
        )
    drawn = draw(len(targets), wanted, seed)
    return others(len(targets), drawn), drawn


TRAINING_SETS = ("train", "calibration")


def fingerprints(
    classes: Sequence[str], sets: Mapping[str, Images], digests: Mapping[str, Digests]
) -> tuple[str, str]:
    """`sha256` and `training_sha256` of a dataset.

    Args:
        classes: their names.
        sets: all images by set, those of `TRAINING_SETS` among them.
        digests: of every image's content, in order, by set: uint8 [N, 32].
    """
    training = {name: sets[name] for name in TRAINING_SETS}
    return fingerprint(classes, sets, digests), fingerprint(classes, training, digests)


def fingerprint(
    classes: Sequence[str], sets: Mapping[str, Images], digests: Mapping[str, Digests]
) -> str:
    """SHA-256 of the class names, and of the labels and contents of every set."""
    whole = hashlib.sha256(json.dumps(list(classes)).encode())
    for name, images in sets.items():
        for text in _as_json(name, images.labels):
            whole.update(text.encode())
        whole.update(np.ascontiguousarray(digests[name]).data)
    return whole.hexdigest()


def _as_json(name: str, labels: Tensor) -> Iterator[str]:
    """A set's name and labels as one JSON list, some of it at a time."""
    if is_mask(labels):  # too many numbers for a text
        rows = (hashlib.sha256(mask.numpy().tobytes()).hexdigest() for mask in labels)
        yield json.dumps([name, list(labels.shape[1:]), *rows])
        return
    yield f"[{json.dumps(name)}, ["
    for begin in range(0, len(labels), _LABELS_AT_A_TIME):
        part = json.dumps(labels[begin : begin + _LABELS_AT_A_TIME].tolist())[1:-1]
        yield f"{', ' if begin else ''}{part}"
    yield "]]"


def array_dataset(
    name: str, classes: Sequence[str], sets: Mapping[str, Images], mean: Channels, std: Channels
) -> Dataset:
    """A dataset of images in memory; `sets` holds train, calibration and test, unresized."""
    digests, shape = {}, sets["train"].shape
    if fits_in_memory(sum(len(images) for images in sets.values()), shape):
        delivered = {key: images.resized() for key, images in sets.items()}
    else:
        delivered = dict(sets)
    for key, images in sets.items():
        assert isinstance(images.source, Tensor)
        stored = images.source.numpy()
        rows = range(len(images)) if images.rows is None else images.rows.tolist()
        found = b"".join(hashlib.sha256(stored[row].tobytes()).digest() for row in rows)
        digests[key] = np.frombuffer(found, np.uint8).reshape(-1, 32)
    sha256, training_sha256 = fingerprints(classes, sets, digests)
    return Dataset(
        name=name,
        classes=tuple(classes),
        train=delivered["train"],
        calibration=delivered["calibration"],
        tests={"test": delivered["test"]},
        mean=mean,
        std=std,
        sha256=sha256,
        training_sha256=training_sha256,
    )
