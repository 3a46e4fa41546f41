"""A folder of images for each class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.values import name_fault
from pipeline.tasks.images.cache import kept_or_decoded, place_of
from pipeline.tasks.images.dataset import Dataset, fingerprints, split_calibration
from pipeline.tasks.images.files import EXTENSIONS
from pipeline.tasks.images.pixels import Images, fits_in_memory, margin_of
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
    files, problems = scan_folder("data.train", train)
    if problems:
        raise InputError("\n".join(problems))
    return tuple(files)


def folders_dataset(
    config: ImageFolderData, shape: InputShape, seed: int, cache: Path | None
) -> Dataset:
    """Folders of photos, one for each class."""
    roots, found = _scanned(config)
    train = roots["data.train"]
    classes = list(found["data.train"])
    margin = margin_of(shape, config.crop_pct)
    sets = {key: _as_images(files, shape, margin) for key, files in found.items()}
    where = f"data.train ({train})"
    labels = sets["data.train"].labels
    left, drawn = split_calibration(labels, config.calibration_images, seed, where)
    sets, digests, notes = _read(roots, sets, shape.within(margin), cache)
    whole, all_digests = sets.pop("data.train"), digests.pop("data.train")
    for key, rows in {"calibration": drawn, "train": left}.items():
        digests[key] = [all_digests[row] for row in rows.tolist()]
    sets = {"train": whole.take(left), "calibration": whole.take(drawn), **sets}
    mean, std = mean_and_std(config, shape.channels)
    sha256, training_sha256 = fingerprints(classes, sets, digests)
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
        notes=notes,
    )


def folder_places(config: ImageFolderData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the folders are looked for.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    roots, found = _scanned(config)
    whole = shape.within(margin_of(shape, config.crop_pct))
    try:
        return {
            place_of(roots[key], [file for group in files.values() for file in group], whole, cache)
            for key, files in found.items()
        }
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be looked at ({error.strerror})") from error


def _scanned(
    config: ImageFolderData,
) -> tuple[dict[str, Path], dict[str, dict[str, list[Path]]]]:
    """By the key of the recipe: the folder of each set, and its files by class.

    Raises:
        InputError: they are not there, or do not fit together.
    """
    train, tests = _folders(config)
    roots = {"data.train": train} | {f"{_TEST}{name}": path for name, path in tests.items()}
    found, problems = {}, []
    for key, root in roots.items():
        found[key], complaints = scan_folder(key, root)
        problems += complaints
    if classes := set(found["data.train"]):
        for key, files in found.items():
            problems += class_differences(key, set(files), classes)
    if problems:
        raise InputError("\n".join(problems))
    return roots, found


def _as_images(
    files: Mapping[str, Sequence[Path]], shape: InputShape, margin: tuple[int, int]
) -> Images:
    counts = torch.tensor([len(group) for group in files.values()])
    return Images(
        labels=torch.arange(len(counts)).repeat_interleave(counts),
        shape=shape,
        source=tuple(file for group in files.values() for file in group),
        margin=margin,
    )


def _read(
    roots: Mapping[str, Path], sets: Mapping[str, Images], shape: InputShape, cache: Path | None
) -> tuple[dict[str, Images], dict[str, list[bytes]], tuple[str, ...]]:
    """The sets, decoded where there is room for them; the digest of every file; notes."""
    in_memory = fits_in_memory(sum(len(images) for images in sets.values()), shape)
    read, digests, problems, notes = {}, {}, [], []
    for key, images in sets.items():
        assert isinstance(images.source, tuple)
        try:
            kept = kept_or_decoded(roots[key], images.source, shape, cache, in_memory=in_memory)
        except InputError as error:
            problems.append(str(error))
            continue
        read[key], digests[key] = replace(images, source=kept.source), kept.digests
        notes += [kept.note] if kept.note else []
    if problems:
        raise InputError("\n".join(problems))
    return read, digests, tuple(notes)


def scan_folder(key: str, root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Class folders of `root` with their images, both sorted, and what is wrong with them.

    As in torchvision's ImageFolder, a class folder may hold further folders (links to folders
    inside it are not followed), and files without an image's suffix are passed over. Hidden
    folders are no classes. `key` opens every problem line.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        return {}, [f"{key}: {root} {state}; give a folder that holds one folder per class"]
    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files = {name: _images_below(root / name) for name in names}
    problems = []
    if not names:
        problems = [f"{key}: {root} is empty of class folders; put images in {root}/<class>/"]
    if len(names) == 1:
        problems = [f"{key}: {root} holds one class only, '{names[0]}'; at least 2 are needed"]
    problems += [
        f"{key}: class '{name}' has no images in {root / name}; "
        f"add some ({' '.join(EXTENSIONS)}) or remove the folder"
        for name in names
        if not files[name]
    ]
    return files, problems


def class_differences(key: str, names: set[str], expected: set[str]) -> list[str]:
    """What is wrong with the class folders `names`, where train has `expected`; [] if nothing."""
    if not names or names == expected:
        return []
    parts = [
        f"{label} {', '.join(repr(name) for name in sorted(group))}"
        for label, group in (("missing", expected - names), ("not in train", names - expected))
        if group
    ]
    return [f"{key}: class folders differ from data.train's: {'; '.join(parts)}; make them equal"]


def _images_below(folder: Path) -> list[Path]:
    walked = os.walk(folder)
    files = [Path(place, name) for place, _, names in walked for name in names]
    return sorted(
        file
        for file in files
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    )
