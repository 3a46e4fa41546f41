"""A folder of images for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.values import name_fault
from pipeline.tasks.images.cache import kept_or_decoded, place_of
from pipeline.tasks.images.damage import skipped, undamaged
from pipeline.tasks.images.dataset import Dataset, fingerprints, split_calibration
from pipeline.tasks.images.files import suffixes
from pipeline.tasks.images.pixels import Images, fits_in_memory
from pipeline.tasks.images.preparation import Preparation, preparation_of
from pipeline.tasks.images.scan import Scan, class_differences, scan_folder
from pipeline.tasks.images.statistics import mean_and_std

_TEST = "data.test."
_LAYOUT = "train/<class>/ and test/<class>/ (or val/<class>/)"


def _folders(config: ImageFolderData) -> tuple[Path, dict[str, Path]]:
    """Where the training images are, and every test set."""
    if config.path is None:
        assert config.train is not None  # the recipe's types see to it
        assert config.test is not None
        return Path(config.train), {name: Path(path) for name, path in config.test.items()}
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
    """The classes of the training images: the names of their folders.

    Raises:
        InputError: there are none, or one has no images.
    """
    train, _ = _folders(config)
    scan = scan_folder("data.train", train)
    if scan.problems:
        raise InputError("\n".join(scan.problems))
    return tuple(scan.files)


def folders_dataset(
    config: ImageFolderData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Folders of photos, one for each class."""
    scans = _scanned(config)
    classes = list(scans["data.train"].files)
    preparation = preparation_of(config, shape)
    sets = {key: _as_images(scan.files, preparation) for key, scan in scans.items()}
    where = f"data.train ({scans['data.train'].root})"
    # Before anything is read, which takes long; damaged files only make fewer images.
    split_calibration(sets["data.train"].labels, config.calibration_images, seed, where)
    sets, digests, notes = _read(scans, sets, config, cache)
    damaged = {
        key.removeprefix("data.").removeprefix("test."): lost
        for key, scan in scans.items()
        if (lost := sum(map(len, scan.files.values())) - len(sets[key]))
    }
    whole, all_digests = sets.pop("data.train"), digests.pop("data.train")
    left, drawn = split_calibration(whole.labels, config.calibration_images, seed, where)
    for key, rows in {"calibration": drawn, "train": left}.items():
        digests[key] = [all_digests[row] for row in rows.tolist()]
    sets = {"train": whole.take(left), "calibration": whole.take(drawn), **sets}
    mean, std = mean_and_std(config, shape.channels)
    sha256, training_sha256 = fingerprints(classes, sets, digests)
    others = [file for scan in scans.values() for file in scan.others]
    return Dataset(
        name=config.kind,
        classes=tuple(classes),
        train=sets["train"],
        calibration=sets["calibration"],
        tests={
            key.removeprefix(_TEST): images for key, images in sets.items() if key.startswith(_TEST)
        },
        mean=mean,
        std=std,
        sha256=sha256,
        training_sha256=training_sha256,
        notes=(*(note for scan in scans.values() for note in scan.notes()), *notes),
        damaged=damaged,
        passed_over=suffixes(others),
    )


def folder_places(config: ImageFolderData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the folders are looked for.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    preparation = preparation_of(config, shape)
    try:
        return {
            place_of(scan.root, _files_of(scan), preparation, cache)
            for scan in _scanned(config).values()
        }
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be looked at ({error.strerror})") from error


def _files_of(scan: Scan) -> list[Path]:
    return [file for group in scan.files.values() for file in group]


def _scanned(config: ImageFolderData) -> dict[str, Scan]:
    """What the folder of each set holds, by the key of the recipe.

    Raises:
        InputError: they are not there, or do not fit together.
    """
    train, tests = _folders(config)
    roots = {"data.train": train} | {f"{_TEST}{name}": path for name, path in tests.items()}
    scans = {key: scan_folder(key, root) for key, root in roots.items()}
    problems = [problem for scan in scans.values() for problem in scan.problems]
    if classes := set(scans["data.train"].files):
        problems += [line for scan in scans.values() for line in class_differences(scan, classes)]
    if problems:
        raise InputError("\n".join(problems))
    return scans


def _as_images(files: Mapping[str, Sequence[Path]], preparation: Preparation) -> Images:
    counts = torch.tensor([len(group) for group in files.values()])
    return Images(
        labels=torch.arange(len(counts)).repeat_interleave(counts),
        shape=preparation.shape,
        source=tuple(file for group in files.values() for file in group),
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
    whole = sets["data.train"].preparation.whole
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
