"""Folders of images whose labels stand in tables; an image may have several, or none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.classes import listed_classes
from pipeline.tasks.images.dataset import Dataset, others
from pipeline.tasks.images.folders import (
    CALIBRATION,
    TEST,
    TRAIN,
    FoundImages,
    as_dataset,
    image_folders,
    places_of,
)
from pipeline.tasks.images.label_rows import Rows, matched, place, tables_of, without_row
from pipeline.tasks.images.label_table import NAME, Table, labels_in, separator_of
from pipeline.tasks.images.preparation import preparation_of
from pipeline.tasks.images.scan import Scan, scan_all

_LAYOUT = f"train/ and test/ (or val/) with images, and {NAME}"


def labelled_dataset(
    config: ImageFolderData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Folders of photos, with tables of their labels.

    Raises:
        InputError: files and tables are not there, or do not fit together; or no image of a test
            set has a label, so that nothing can be told of it.
    """
    found = _found(config)
    dataset = as_dataset(found, config, shape, seed, cache, split_labelled)
    for name, images in dataset.tests.items():
        if not images.labels.any():
            raise InputError(
                f"{TEST}{name}: none of its {len(images)} images has a label, so that average "
                "precision says nothing; add images that have one"
            )
    return dataset


def label_names(config: ImageFolderData) -> tuple[str, ...]:
    """The labels: those of the file `classes`, or else those that training images have.

    Raises:
        InputError: files and tables are not there, or do not fit together.
    """
    return _found(config).classes


def labelled_places(config: ImageFolderData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the folders are looked for.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    return places_of(_scanned(config), preparation_of(config, shape), cache)


def split_labelled(labels: Tensor, wanted: int, seed: int, where: str) -> tuple[Tensor, Tensor]:
    """Indices of the images to train on, and of those that calibrate, drawn at random.

    An image is passed over where it is the last one left that has one of its labels.

    Args:
        labels: 0 or 1 (images, labels).
        wanted: images to calibrate on.
        seed: the same seed gives the same draw.
        where: the images are, in words.

    Raises:
        InputError: fewer can be drawn.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    left = labels.long().sum(0).tolist()
    drawn: list[int] = []
    for image in order:
        if len(drawn) == wanted:
            break
        having = labels[image].nonzero().flatten().tolist()
        if all(left[label] > 1 for label in having) and len(drawn) + 1 < len(labels):
            drawn.append(image)
            for label in having:
                left[label] -= 1
    if len(drawn) < wanted:
        raise InputError(
            f"data.calibration_images: got {wanted}; {where} has {len(labels)} images and keeps "
            f"one with each label for training, so at most {len(drawn)}; lower it, add images or "
            "give data.calibration"
        )
    rows = torch.tensor(drawn, dtype=torch.int64)
    return others(len(labels), rows), rows


def _scanned(config: ImageFolderData) -> dict[str, Scan]:
    """What the folder of each set holds, by the key of the recipe.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    train, tests = image_folders(config, _LAYOUT)
    roots = {} if train is None else {TRAIN: train}
    roots |= {f"{TEST}{name}": path for name, path in tests.items()}
    if config.calibration is not None:
        roots[CALIBRATION] = Path(config.calibration)
    table = None if config.labels is None else place(Path(config.labels))

    def is_table(file: Path) -> bool:
        return file.name == NAME or (table is not None and place(file) == table)

    scans = {key: scan_all(key, root, is_table) for key, root in roots.items()}
    _refuse("\n".join(problem for scan in scans.values() for problem in scan.problems))
    return scans


def _found(config: ImageFolderData) -> FoundImages:
    """Everything but the pixels.

    Raises:
        InputError: names file, row, value and what to do, for everything that is wrong.
    """
    scans = _scanned(config)
    by_set = tables_of(config, scans)
    tables = list(dict.fromkeys(by_set.values()))
    _refuse("\n".join(line for table in tables for line in table.told()))
    separator = separator_of(tables)
    rows = matched(by_set, scans)
    labels = {file: labels_in(table, row, separator) for file, (table, row) in rows.items()}
    lines = [line for table in tables for line in table.told()]
    _refuse("\n".join([*lines, *without_row(by_set, scans, rows)]))
    given = None if config.classes is None else Path(config.classes)
    if given is None:
        names = _of_training(scans[TRAIN], by_set[TRAIN], labels)
    else:
        names = listed_classes(given, fewest=1)
    _note_unknown(rows, labels, names, given)
    if given is None:
        _note_missing(tables, names)
    _refuse("\n".join(line for table in tables for line in table.told()))
    return FoundImages(
        scans=scans,
        classes=names,
        labels={key: _numbers(scan, labels, names) for key, scan in scans.items()},
        notes=tuple(_unused(tables, names)),
    )


def _refuse(problems: str) -> None:
    if problems:
        raise InputError(problems)


def _of_training(scan: Scan, table: Table, labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The labels that training images have: in the order of the columns, or else by name."""
    seen = {label for file in scan.images for label in labels[place(file)]}
    if not seen:
        raise InputError(f"{TRAIN}: {table.path} gives no training image a label; add some")
    return tuple(
        sorted(seen) if table.columns is None else filter(seen.__contains__, table.columns)
    )


def _note_unknown(
    rows: Rows, labels: Mapping[str, Sequence[str]], names: Collection[str], given: Path | None
) -> None:
    """Note every label of an image that the network does not learn."""
    known = frozenset(names)
    for file, (table, row) in rows.items():
        for label in labels[file]:
            if label in known:
                continue
            what = f"file {row.file!r}: label {label!r}"
            if given is None:
                table.wrong(
                    row.number,
                    f"{what} is never seen in training; correct it, add training images that have "
                    "it, or name all labels in data.classes",
                )
            else:
                table.wrong(
                    row.number, f"{what} is not in {given} (data.classes); correct it, or add it"
                )


def _note_missing(tables: Sequence[Table], names: Sequence[str]) -> None:
    """Note the labels of training that a table has no column for: who has them is not known."""
    for table in tables:
        if table.columns is None:
            continue
        if missing := [repr(name) for name in names if name not in table.columns]:
            table.wrong(
                1,
                f"has no column for {listed(missing)}, which training images have; add it, with 0 "
                "or 1 in every row",
            )


def _numbers(scan: Scan, labels: Mapping[str, Sequence[str]], names: Sequence[str]) -> Tensor:
    """1 where an image has a label: uint8 (images, labels)."""
    number = {name: column for column, name in enumerate(names)}
    files = scan.images
    found = torch.zeros((len(files), len(names)), dtype=torch.uint8)
    for row, file in enumerate(files):
        found[row, [number[label] for label in labels.get(place(file), ())]] = 1
    return found


def _unused(tables: Sequence[Table], names: Collection[str]) -> Iterator[str]:
    """Lines for the user about columns that are no labels."""
    for table in tables:
        if unused := [repr(name) for name in table.columns or () if name not in names]:
            yield f"{table.key}: {table.path}: no image has {listed(unused)}: no label"
