"""A folder of images for each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData, Photos
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.values import name_fault
from pipeline.tasks.images.cache import kept_or_decoded, place_of
from pipeline.tasks.images.classes import listed_classes, unlisted
from pipeline.tasks.images.damage import skipped, undamaged
from pipeline.tasks.images.dataset import (
    Dataset,
    Digests,
    draw,
    fingerprints,
    split_calibration,
)
from pipeline.tasks.images.index import index_of
from pipeline.tasks.images.pixels import Images, fits_in_memory
from pipeline.tasks.images.preparation import Preparation, preparation_of
from pipeline.tasks.images.scan import Scan, Scanned, class_differences, scan_all, scan_folder
from pipeline.tasks.images.statistics import mean_and_std

TRAIN, CALIBRATION, TEST = "data.train", "data.calibration", "data.test."
_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/)"


Split = Callable[[Tensor, int, int, str], tuple[Tensor, Tensor]]
"""Rows to train on, and to calibrate on, of labels, how many, a seed and where they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundImages:
    """Images and what they are, before any of them is read.

    Attributes:
        scans: of the folder of each set, by the key of the recipe.
        classes: names of the classes, or labels.
        labels: of the images of each set: int64 (images), or uint8 (images, labels).
        notes: what the user is to know, a line each.
    """

    scans: Mapping[str, Scanned]
    classes: tuple[str, ...]
    labels: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def image_folders(config: Photos, layout: str = _LAYOUT) -> tuple[Path | None, dict[str, Path]]:
    """Where the training images are, if there are any, and every test set.

    Args:
        config: of the recipe.
        layout: of a folder that holds all of them, in words.

    Raises:
        InputError: they are not there.
    """
    if config.path is None:
        assert config.test is not None  # the recipe's types see to it
        train = None if config.train is None else Path(config.train)
        return train, {name: Path(path) for name, path in config.test.items()}
    path, train = Path(config.path), Path(config.path) / "train"
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"data.path: {path} {state}; give a folder that holds {layout}")
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir())
    tests = {entry.name: entry for entry in inside if entry.name.startswith(("test", "val"))}
    for name, folder in tests.items():
        if (why_not := name_fault(name)) is not None:
            raise InputError(f"data.path: {folder}: the name of a test set's folder {why_not}")
    if not train.is_dir() or not tests:
        folders = ", ".join(entry.name for entry in inside[:10]) or "no folder"
        raise InputError(
            f"data.path: {path} holds {folders}; it must hold {layout}, or data.train and "
            "data.test say where they are"
        )
    return train, tests


def folder_classes(config: ImageFolderData) -> tuple[str, ...]:
    """The classes: those of the file `classes`, or else the names of the training folders.

    Raises:
        InputError: there are none, or one has no images.
    """
    if config.classes is not None:
        return listed_classes(Path(config.classes))
    train, _ = image_folders(config)
    assert train is not None  # the recipe's types see to it
    scan = scan_folder(TRAIN, train)
    if scan.problems:
        raise InputError("\n".join(scan.problems))
    return tuple(scan.counts)


def folders_dataset(
    config: ImageFolderData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Folders of photos, one for each class."""
    scans, classes = _scanned(config)
    labels = {key: _numbers(scan, classes) for key, scan in scans.items()}
    found = FoundImages(scans=scans, classes=classes, labels=labels)
    return as_dataset(found, config, shape, seed, cache, split_calibration)


def as_dataset(
    found: FoundImages,
    config: Photos,
    shape: InputShape,
    seed: int,
    cache: Path | None,
    split: Split,
) -> Dataset:
    """Read the images that were found.

    Args:
        found: all of them.
        config: of the recipe.
        shape: of a delivered image.
        seed: picks which training images calibrate.
        cache: directory that keeps decoded images; None keeps none.
        split: the training images, where none are given to calibrate on.

    Raises:
        InputError: images cannot be read, or are too few to calibrate on.
    """
    scans, classes = found.scans, found.classes
    preparation = preparation_of(config, shape)
    sets = {
        key: _as_images(scan, found.labels[key], preparation, config.workers)
        for key, scan in scans.items()
    }
    # Before anything is read, which takes long; damaged files only make fewer images.
    _division(sets, scans, config, seed, split)
    sets, digests, notes = _read(scans, sets, config, cache)
    damaged = {
        key.removeprefix("data.").removeprefix("test."): lost
        for key, scan in scans.items()
        if (lost := len(scan.images) - len(sets[key]))
    }
    parts = _division(sets, scans, config, seed, split)
    digests |= {name: digests[key][rows.numpy()] for name, (key, rows) in parts.items()}
    drawn = {name: sets[key].take(rows) for name, (key, rows) in parts.items()}
    tests = {key: images for key, images in sets.items() if key.startswith(TEST)}
    sets = {**drawn, **tests}
    mean, std = mean_and_std(config, shape.channels)
    sha256, training_sha256 = fingerprints(classes, sets, digests)
    passed_over = sum((Counter(scan.passed_over()) for scan in scans.values()), Counter[str]())
    return Dataset(
        name=config.kind,
        classes=classes,
        train=sets["train"],
        calibration=sets["calibration"],
        tests={key.removeprefix(TEST): images for key, images in tests.items()},
        mean=mean,
        std=std,
        sha256=sha256,
        training_sha256=training_sha256,
        notes=(*found.notes, *(note for scan in scans.values() for note in scan.notes()), *notes),
        damaged=damaged,
        passed_over=dict(passed_over.most_common()),
    )


def _division(
    sets: Mapping[str, Images],
    scans: Mapping[str, Scanned],
    config: Photos,
    seed: int,
    split: Split,
) -> dict[str, tuple[str, Tensor]]:
    """Which images of which folder train, and which calibrate: its key, and their rows."""
    wanted, none = config.calibration_images, torch.tensor([], dtype=torch.int64)
    if CALIBRATION not in sets:
        where = f"{TRAIN} ({scans[TRAIN].root})"
        left, drawn = split(sets[TRAIN].labels, wanted, seed, where)
        return {"train": (TRAIN, left), "calibration": (TRAIN, drawn)}
    # Without training images, none of the others: they are of the same shape.
    train = (TRAIN, torch.arange(len(sets[TRAIN]))) if TRAIN in sets else (CALIBRATION, none)
    drawn = draw(len(sets[CALIBRATION]), wanted, seed)
    return {"train": train, "calibration": (CALIBRATION, drawn)}


def folder_places(config: ImageFolderData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the folders are looked for.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    return places_of(_scanned(config)[0], preparation_of(config, shape), cache)


def places_of(scans: Mapping[str, Scanned], preparation: Preparation, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of scanned folders, and their indexes, are looked for.

    Raises:
        InputError: a folder cannot be looked at.
    """
    try:
        return {
            place
            for scan in scans.values()
            for place in (
                index_of(cache, scan.root),
                place_of(scan.images, preparation, cache),
            )
        }
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be looked at ({error.strerror})") from error


def _scanned(config: ImageFolderData) -> tuple[dict[str, Scan], tuple[str, ...]]:
    """What the folder of each set holds, by the key of the recipe, and the classes.

    Raises:
        InputError: they are not there, or do not fit together.
    """
    train, tests = image_folders(config)
    given = None if config.classes is None else Path(config.classes)
    roots = {} if train is None else {TRAIN: train}
    roots |= {f"{TEST}{name}": path for name, path in tests.items()}
    fewest = 2 if given is None else 1
    scans = {key: scan_folder(key, root, fewest) for key, root in roots.items()}
    if given is not None:
        classes = listed_classes(given)
        wrong = [line for scan in scans.values() for line in unlisted(scan, classes, given)]
    else:
        classes = tuple(scans[TRAIN].counts)
        found = scans.values() if classes else ()
        wrong = [
            line
            for scan in found
            for line in class_differences(scan, set(classes), empty=scan.empty)
        ]
    if config.calibration is not None:
        scans[CALIBRATION] = scan_all(CALIBRATION, Path(config.calibration))
    if problems := [problem for scan in scans.values() for problem in scan.problems] + wrong:
        raise InputError("\n".join(problems))
    return scans, classes


def _numbers(scan: Scan, classes: Sequence[str]) -> Tensor:
    """The class of every image: int64 (images)."""
    # Images to calibrate on have no classes: theirs is never asked for.
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number.get(name, 0) for name in scan.counts], dtype=torch.int64)
    return labels.repeat_interleave(torch.tensor([*scan.counts.values()], dtype=torch.int64))


def _as_images(
    scan: Scanned, labels: Tensor, preparation: Preparation, workers: int | None
) -> Images:
    return Images(
        labels=labels,
        shape=preparation.shape,
        source=scan.images,
        margin=preparation.margin,
        interpolation=preparation.interpolation,
        background=preparation.background,
        aspect=preparation.aspect,
        workers=workers,
    )


def _read(
    scans: Mapping[str, Scanned],
    sets: Mapping[str, Images],
    config: Photos,
    cache: Path | None,
) -> tuple[dict[str, Images], dict[str, Digests], list[str]]:
    """The sets, decoded where there is room for them; the digest of every file; notes."""
    skip = config.damaged == "skip"
    whole = next(iter(sets.values())).preparation.whole
    in_memory = fits_in_memory(sum(len(images) for images in sets.values()), whole)
    read, digests, problems, notes = {}, {}, [], []
    for key, images in sets.items():
        try:
            kept = kept_or_decoded(
                *(scans[key].root, scans[key].images, images.preparation, cache),
                in_memory=in_memory,
                skip=skip,
            )
            rows = undamaged(scans[key], kept.digests, config.damaged_share)
        except InputError as error:
            problems.append(str(error))
            continue
        notes += [kept.note] if kept.note else []
        notes += skipped(scans[key], rows)
        read[key] = replace(images, source=kept.source)
        if len(rows) < len(images):
            read[key] = read[key].take(rows)
        digests[key] = kept.digests[rows.numpy()]
    if problems:
        raise InputError("\n".join(problems))
    return read, digests, notes
