"""Folders of images whose objects stand in annotations, COCO's or Pascal VOC's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.recipe.data import CocoData, DigitScenesData, VocData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.annotations import Annotated, Named
from pipeline.tasks.images.boxes import COLUMNS, targets_of, there
from pipeline.tasks.images.classes import listed_classes
from pipeline.tasks.images.coco import coco_file, read_coco
from pipeline.tasks.images.dataset import Dataset, array_dataset, split_evenly
from pipeline.tasks.images.digits import DIGITS
from pipeline.tasks.images.folders import (
    CALIBRATION,
    TEST,
    TRAIN,
    FoundImages,
    as_dataset,
    image_folders,
    places_of,
)
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.preparation import Preparation, placed, preparation_of
from pipeline.tasks.images.scan import Scan, scan_all
from pipeline.tasks.images.scenes import scene_sets
from pipeline.tasks.images.statistics import mean_and_std
from pipeline.tasks.images.voc import read_voc, stem_of, voc_folder

BoxData = CocoData | VocData
_LAYOUTS = {
    "coco": "train/ and test/ (or val/), each with images/ and annotations.json",
    "voc": "train/ and test/ (or val/), each with JPEGImages/ and Annotations/",
}


def boxes_dataset(config: BoxData, shape: InputShape, seed: int, cache: Path | None) -> Dataset:
    """Folders of photos, with the objects in them.

    Raises:
        InputError: files and annotations are not there, or do not fit together; or a test set has
            no object, so that nothing can be told of it.
    """
    scans, said, classes = _found(config)
    preparation = preparation_of(config, shape)
    labels = {
        key: _targets(config, scan, said[key], classes, preparation)
        if key in said
        else targets_of([torch.zeros(0, COLUMNS)] * len(scan.images))
        for key, scan in scans.items()
    }
    for key, targets in labels.items():
        if key.startswith(TEST) and not there(targets).any():
            raise InputError(
                f"{key}: none of its {len(targets)} images has an object, so that average precision"
                " says nothing; add images that have one"
            )
    found = FoundImages(scans=scans, classes=classes, labels=labels)
    return as_dataset(found, config, shape, seed, cache, split_evenly)


def scene_boxes_dataset(config: DigitScenesData, shape: InputShape) -> Dataset:
    """Scenes of digits with the boxes of the digits."""
    sets = {
        name: Images(
            labels=targets_of([_of_scene(boxes, shape) for boxes in found.boxes]),
            shape=shape,
            source=found.pixels,
        )
        for name, found in scene_sets(config, shape).items()
    }
    return array_dataset(config.kind, DIGITS, sets, *mean_and_std(config, shape.channels))


def _of_scene(boxes: Tensor, shape: InputShape) -> Tensor:
    """The digits of a scene as rows [objects, 6] of targets."""
    size = torch.tensor([shape.width, shape.height] * 2)
    return torch.cat([boxes[:, :4] / size, boxes[:, 4:].float(), torch.zeros(len(boxes), 1)], 1)


def box_classes(config: BoxData) -> tuple[str, ...]:
    """The classes: those of the file `classes`, or else those of the training annotations.

    Raises:
        InputError: files and annotations are not there, or do not fit together.
    """
    if config.classes is not None:
        return listed_classes(Path(config.classes), fewest=1)
    return _found(config)[2]


def box_places(config: BoxData, shape: InputShape, cache: Path) -> set[Path]:
    """Where in `cache` the decoded images of the folders are looked for.

    Raises:
        InputError: a folder is not what it was, or cannot be looked at.
    """
    return places_of(_scanned(config), preparation_of(config, shape), cache)


def _scanned(config: BoxData) -> dict[str, Scan]:
    """The images of each set, by the key of the recipe."""
    train, tests = image_folders(config, _LAYOUTS[config.kind])
    roots = {} if train is None else {TRAIN: train}
    roots |= {f"{TEST}{name}": path for name, path in tests.items()}
    if config.calibration is not None:
        roots[CALIBRATION] = Path(config.calibration)
    scans = {key: scan_all(key, root, _annotates) for key, root in roots.items()}
    _refuse([problem for scan in scans.values() for problem in scan.problems])
    return scans


def _annotates(file: Path) -> bool:
    return file.suffix.lower() in (".json", ".xml")


def _found(config: BoxData) -> tuple[dict[str, Scan], dict[str, Annotated], tuple[str, ...]]:
    """Images and annotations of each set, and the classes.

    Raises:
        InputError: names file and fault, for everything that is wrong.
    """
    scans = _scanned(config)
    said = {key: _read(config, scan.root) for key, scan in scans.items() if key != CALIBRATION}
    if config.classes is not None:
        classes = listed_classes(Path(config.classes), fewest=1)
    else:
        classes = said[TRAIN].classes
    problems = [line for one in said.values() for line in one.problems]
    for key, one in said.items():
        problems += _unlisted(key, one, classes) + _unmatched(config, scans[key], one)
    _refuse(problems)
    return scans, said, classes


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise InputError("\n".join(problems))


def _read(config: BoxData, root: Path) -> Annotated:
    if config.kind == "coco":
        return read_coco(coco_file(root))
    return read_voc(voc_folder(root))


def _unlisted(key: str, said: Annotated, classes: Sequence[str]) -> list[str]:
    """What is wrong where objects are of classes that are not listed."""
    named = {one.name for found in said.objects.values() for one in found}
    odd = sorted(named - set(classes))
    if not odd:
        return []
    return [
        f"{key}: objects of {listed(map(repr, odd))}, and the {len(classes)} classes are "
        f"{listed(map(repr, classes))}; name them in data.classes, or correct the annotations"
    ]


def _unmatched(config: BoxData, scan: Scan, said: Annotated) -> list[str]:
    """What is wrong where an image has no annotations, or annotations no image."""
    lines = []
    names = [scan.images.name(row) for row in range(len(scan.images))]
    without = [name for name in names if _key_of(config, name, said) is None]
    if without:
        count = "image has no annotation" if len(without) == 1 else "images have no annotation"
        lines.append(
            f"{scan.key}: {len(without)} {count} in {scan.root}, such as {without[0]}; list it, "
            "with or without objects, or remove it"
        )
    known = {_key_of(config, name, said) for name in names}
    gone = [name for name in said.sizes if name not in known]
    if gone:
        lines.append(
            f"{scan.key}: {len(gone)} of {len(said.sizes)} annotated images are not in {scan.root}"
            f", such as {gone[0]}; put it there, or take it out of the annotations"
        )
    return lines


def _key_of(config: BoxData, name: str, said: Annotated) -> str | None:
    """What names an image file in the annotations; None where nothing does."""
    if config.kind == "voc":
        stem = stem_of(name)
        return stem if stem in said.sizes else None
    # A file_name is seen from the folder of the set, or from one in it, such as images.
    return next((key for key in (name, name.partition("/")[2]) if key in said.sizes), None)


def _targets(
    config: BoxData, scan: Scan, said: Annotated, classes: Sequence[str], preparation: Preparation
) -> Tensor:
    """The objects of every image, in the order of the files, in shares of a delivered image."""
    number = {name: place for place, name in enumerate(classes)}
    rows = []
    for row in range(len(scan.images)):
        key = _key_of(config, scan.images.name(row), said)
        assert key is not None  # `_unmatched` has looked
        rows.append(_shares(said.objects[key], said.sizes[key], number, preparation))
    return targets_of(rows)


def _shares(
    objects: Sequence[Named],
    size: tuple[int, int],
    number: Mapping[str, int],
    preparation: Preparation,
) -> Tensor:
    """Objects as rows [objects, 6] of targets."""
    width, height = size
    listed_rows = [(*one.sides, float(number[one.name]), float(one.ignored)) for one in objects]
    rows = torch.tensor(listed_rows, dtype=torch.float64).reshape(-1, COLUMNS)
    top, left, tall, wide = placed(height, width, preparation)
    shape = preparation.shape
    for ends in (0, 2):
        rows[:, ends] = (rows[:, ends] / width * wide + left) / shape.width
        rows[:, ends + 1] = (rows[:, ends + 1] / height * tall + top) / shape.height
    return rows.float()
