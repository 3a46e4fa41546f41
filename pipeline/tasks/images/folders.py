"""A folder of images for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.values import name_fault
from pipeline.tasks.images.cache import kept_or_decoded, place_of
from pipeline.tasks.images.classes import listed_classes, unlisted
from pipeline.tasks.images.damage import skipped, undamaged
from pipeline.tasks.images.dataset import Dataset, draw, fingerprints, split_calibration
from pipeline.tasks.images.files import suffixes
from pipeline.tasks.images.pixels import Images, fits_in_memory
from pipeline.tasks.images.preparation import Preparation, preparation_of
from pipeline.tasks.images.scan import Scan, class_differences, scan_all, scan_folder
from pipeline.tasks.images.statistics import mean_and_std

_TRAIN, _CALIBRATION, _TEST = "data.train", "data.calibration", "data.test."
_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/)"


def _folders(config: ImageFolderData) -> tuple[Path | None, dict[str, Path]]:
    """Where the training images are, if there are any, and every test set."""
    if config.path is None:
        assert config.test is not None  # the recipe's types see to it
        train = None if config.train is None else Path(config.train)
        return train, {name: Path(path) for name, path in config.test.items()}
    path, train = Path(config.path), Path(config.path) / "train"
    if not path.is_dir():
        state = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"data.path: {path} {state}; give a folder that holds {_LAYOUT}")
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir())
    tests = {entry.name: entry for entry in inside if entry.name.startswith(("test", "val"))}
    for name, folder in tests.items():
        if (why_not := name_fault(name)) is not None:
            raise InputError(f"data.path: {folder}: the name of a test set's folder {why_not}")
    if not train.is_dir() or not tests:
        folders = ", ".join(entry.name for entry in inside[:10]) or "no folder"
        raise InputError(
            f"data.path: {path} holds {folders}; it must hold {_LAYOUT}, or data.train and "
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
    train, _ = _folders(config)
    assert train is not None  # the recipe's types see to it
    scan = scan_folder(_TRAIN, train)
    if scan.problems:
        raise InputError("\n".join(scan.problems))
    return tuple(scan.files)


def folders_dataset(
    config: ImageFolderData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Folders of photos, one for each class."""
    scans, classes = _scanned(config)
    preparation = preparation_of(config, shape)
    sets = {key: _as_images(scan, classes, preparation) for key, scan in scans.items()}
    # Before anything is read, which takes long; damaged files only make fewer images.
    _division(sets, scans, config, seed)
    sets, digests, notes = _read(scans, sets, config, cache)
    damaged = {
        key.removeprefix("data.").removeprefix("test."): lost
        for key, scan in scans.items()
        if (lost := sum(map(len, scan.files.values())) - len(sets[key]))
    }
    parts = _division(sets, scans, config, seed)
    digests |= {name: [digests[key][row] for row in rows] for name, (key, rows) in parts.items()}
    drawn = {name: sets[key].take(rows) for name, (key, rows) in parts.items()}
    tests = {key: images for key, images in sets.items() if key.startswith(_TEST)}
    sets = {**drawn, **tests}
    mean, std = mean_and_std(config, shape.channels)
    sha256, training_sha256 = fingerprints(classes, sets, digests)
    others = [file for scan in scans.values() for file in scan.others]
    return Dataset(
        name=config.kind,
        classes=classes,
        train=sets["train"],
        calibration=sets["calibration"],
        tests={key.removeprefix(_TEST): images for key, images in tests.items()},
        mean=mean,
        std=std,
        sha256=sha256,
        training_sha256=training_sha256,
        notes=(*(note for scan in scans.values() for note in scan.notes()), *notes),
        damaged=damaged,
        passed_over=suffixes(others),
    )


def _division(
    sets: Mapping[str, Images], scans: Mapping[str, Scan], config: ImageFolderData, seed: int
) -> dict[str, tuple[str, Tensor]]:
    """Which images of which folder train, and which calibrate: its key, and their rows."""
    wanted, none = config.calibration_images, torch.tensor([], dtype=torch.int64)
    if _CALIBRATION not in sets:
        where = f"{_TRAIN} ({scans[_TRAIN].root})"
        left, drawn = split_calibration(sets[_TRAIN].labels, wanted, seed, where)
        return {"train": (_TRAIN, left), "calibration": (_TRAIN, drawn)}
    # Without training images, none of the others: they are of the same shape.
    train = (_TRAIN, torch.arange(len(sets[_TRAIN]))) if _TRAIN in sets else (_CALIBRATION, none)
    drawn = draw(len(sets[_CALIBRATION]), wanted, seed)
    return {"train": train, "calibration": (_CALIBRATION, drawn)}


def folder_places(config: ImageFolderData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the folders are looked for.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    preparation = preparation_of(config, shape)
    try:
        return {
            place_of(scan.root, _files_of(scan), preparation, cache)
            for scan in _scanned(config)[0].values()
        }
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be looked at ({error.strerror})") from error


def _files_of(scan: Scan) -> list[Path]:
    return [file for group in scan.files.values() for file in group]


def _scanned(config: ImageFolderData) -> tuple[dict[str, Scan], tuple[str, ...]]:
    """What the folder of each set holds, by the key of the recipe, and the classes.

    Raises:
        InputError: they are not there, or do not fit together.
    """
    train, tests = _folders(config)
    given = None if config.classes is None else Path(config.classes)
    roots = {} if train is None else {_TRAIN: train}
    roots |= {f"{_TEST}{name}": path for name, path in tests.items()}
    fewest = 2 if given is None else 1
    scans = {key: scan_folder(key, root, fewest) for key, root in roots.items()}
    if given is not None:
        classes = listed_classes(given)
        wrong = [line for scan in scans.values() for line in unlisted(scan, classes, given)]
    else:
        classes = tuple(scans[_TRAIN].files)
        found = scans.values() if classes else ()
        wrong = [line for scan in found for line in class_differences(scan, set(classes))]
    if config.calibration is not None:
        scans[_CALIBRATION] = scan_all(_CALIBRATION, Path(config.calibration))
    if problems := [problem for scan in scans.values() for problem in scan.problems] + wrong:
        raise InputError("\n".join(problems))
    return scans, classes


def _as_images(scan: Scan, classes: Sequence[str], preparation: Preparation) -> Images:
    # Images to calibrate on have no classes: theirs is never asked for.
    number = {name: label for label, name in enumerate(classes)}
    labels = [number.get(name, 0) for name, group in scan.files.items() for _ in group]
    return Images(
        labels=torch.tensor(labels, dtype=torch.int64),
        shape=preparation.shape,
        source=tuple(_files_of(scan)),
        margin=preparation.margin,
        interpolation=preparation.interpolation,
        background=preparation.background,
    )


def _read(
    scans: Mapping[str, Scan],
    sets: Mapping[str, Images],
    config: ImageFolderData,
    cache: Path | None,
) -> tuple[dict[str, Images], dict[str, list[bytes]], list[str]]:
    """The sets, decoded where there is room for them; the digest of every file; notes."""
    skip = config.damaged == "skip"
    whole = next(iter(sets.values())).preparation.whole
    in_memory = fits_in_memory(sum(len(images) for images in sets.values()), whole)
    read, digests, problems, notes = {}, {}, [], []
    for key, images in sets.items():
        assert isinstance(images.source, tuple)
        try:
            kept = kept_or_decoded(
                *(scans[key].root, images.source, images.preparation, cache),
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
        digests[key] = [kept.digests[row] for row in rows.tolist()]
    if problems:
        raise InputError("\n".join(problems))
    return read, digests, notes
