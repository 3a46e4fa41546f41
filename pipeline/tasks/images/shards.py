"""WebDataset shards as a dataset: classes, labels, and the same way on as that of folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.recipe.data import WebDatasetData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.classes import listed_classes
from pipeline.tasks.images.dataset import Dataset, split_calibration
from pipeline.tasks.images.folders import (
    CALIBRATION,
    TEST,
    TRAIN,
    FoundImages,
    as_dataset,
    image_folders,
    places_of,
)
from pipeline.tasks.images.preparation import preparation_of
from pipeline.tasks.images.scan import class_differences
from pipeline.tasks.images.shard_scan import ShardScan, scan_shards, table_of

_LAYOUT = "train/ and test/ (or val/) with .tar files"
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def shards_dataset(
    config: WebDatasetData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Shards of photos.

    Raises:
        InputError: they are not there, or not whole; or samples and classes do not fit together.
    """
    scans = _scanned(config, cache)
    classes = _classes(config, scans)
    labels, problems = {}, list[str]()
    for key, scan in scans.items():
        labels[key], wrong = _numbers(scan, classes, config)
        problems += wrong
    _refuse(problems)
    found = FoundImages(scans=scans, classes=classes, labels=labels)
    return as_dataset(found, config, shape, seed, cache, split_calibration)


def shard_classes(config: WebDatasetData) -> tuple[str, ...]:
    """The classes: those of the file `classes`, or else the labels of the training shards.

    Raises:
        InputError: there are none.
    """
    if config.classes is not None:
        return listed_classes(Path(config.classes))
    train, _ = image_folders(config, _LAYOUT)
    assert train is not None  # the recipe's types see to it
    scan = scan_shards(TRAIN, train, config.label, None)
    _refuse([*scan.problems])
    return _classes(config, {TRAIN: scan})


def shard_places(config: WebDatasetData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the shards are looked for, and what is known of them.

    Raises:
        InputError: a shard is not what it was, or cannot be looked at.
    """
    scans = _scanned(config, cache, keep=False)
    tables = {table_of(cache, scan.root, _label(key, config)) for key, scan in scans.items()}
    return places_of(scans, preparation_of(config, shape), cache) | tables


def _label(key: str, config: WebDatasetData) -> str | None:
    # Images to calibrate on have no classes: theirs is never asked for.
    return None if key == CALIBRATION else config.label


def _scanned(
    config: WebDatasetData, cache: Path | None, *, keep: bool = True
) -> dict[str, ShardScan]:
    """What the shards of each set hold, by the key of the recipe."""
    train, tests = image_folders(config, _LAYOUT)
    roots = {} if train is None else {TRAIN: train}
    roots |= {f"{TEST}{name}": path for name, path in tests.items()}
    if config.calibration is not None:
        roots[CALIBRATION] = Path(config.calibration)
    scans = {
        key: scan_shards(key, root, _label(key, config), cache, keep=keep)
        for key, root in roots.items()
    }
    _refuse([problem for scan in scans.values() for problem in scan.problems])
    return scans


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise InputError("\n".join(problems))


def _classes(config: WebDatasetData, scans: Mapping[str, ShardScan]) -> tuple[str, ...]:
    """Of the file that the recipe names, or else the labels of the training images.

    Raises:
        InputError: there are none; or, without a file, a test set has others.
    """
    if config.classes is not None:
        return listed_classes(Path(config.classes))
    texts = scans[TRAIN].texts
    if len(texts) < 2:
        raise InputError(
            f"{TRAIN}: {scans[TRAIN].root} holds one class only, '{texts[0]}'; at least 2 are "
            "needed"
        )
    if all(map(_WHOLE.fullmatch, texts)):
        classes = tuple(sorted(texts, key=lambda text: (int(text), text)))
    else:
        classes = tuple(sorted(texts))
    tests = [scan for key, scan in scans.items() if key.startswith(TEST)]
    _refuse([line for scan in tests for line in class_differences(scan, set(classes), "labels")])
    return classes


def _numbers(
    scan: ShardScan, classes: Sequence[str], config: WebDatasetData
) -> tuple[Tensor, list[str]]:
    """The class of every image, int64 (images), and what is wrong with their labels."""
    if scan.key == CALIBRATION:
        return torch.zeros(len(scan.images), dtype=torch.int64), []
    number = {name: label for label, name in enumerate(classes)}
    counted = config.classes is not None and not any(map(_WHOLE.fullmatch, classes))
    found = np.full(len(scan.texts), -1, np.int64)
    for code, text in enumerate(scan.texts):
        if counted and _WHOLE.fullmatch(text):
            found[code] = int(text) if 0 <= int(text) < len(classes) else -1
        else:
            found[code] = number.get(text, -1)
    unknown = (found < 0).nonzero()[0]
    if len(unknown):
        return torch.zeros(0), [_unknown(scan, unknown, len(classes), config, counted)]
    return torch.from_numpy(found[scan.labels]), []


def _unknown(
    scan: ShardScan, codes: NDArray[np.int64], classes: int, config: WebDatasetData, counted: bool
) -> str:
    images = np.isin(scan.labels, codes).nonzero()[0]
    allowed = f"0 to {classes - 1} or a name in it" if counted else "a name in it"
    return (
        f"{scan.key}: labels {listed(repr(scan.texts[code]) for code in codes.tolist())} of "
        f"{len(images)} images (such as {scan.images.path(int(images[0]))}): data.classes "
        f"({config.classes}) has {classes} names, so that a label is {allowed}; correct the "
        "labels, or the file"
    )
