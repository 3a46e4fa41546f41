"""Annotations in COCO's JSON (https://cocodataset.org/#format-data), category ids in any numbering.

A box is [left, top, width, height] in pixels. What is a crowd is ignored where boxes are judged.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import InputError, listed
from pipeline.base.safe_files import content_of
from pipeline.tasks.images.annotations import Annotated, Faults, Named, Sides, checked

NAME = "annotations.json"
_MOST_BYTES = 2**31
_FORM = (
    "it must hold images (id, file_name, width, height), annotations (image_id, category_id, bbox) "
    "and categories (id, name), as COCO's do"
)


def coco_file(root: Path) -> Path:
    """The annotations of a folder: annotations.json, or its only JSON file.

    Raises:
        InputError: there is none, or there are several.
    """
    if (root / NAME).is_file():
        return root / NAME
    found = sorted(root.glob("*.json"))
    if len(found) == 1:
        return found[0]
    names = listed(file.name for file in found) if found else "no JSON file"
    raise InputError(f"{root}: holds {names}; it must hold {NAME}, as COCO has it")


def read_coco(path: Path) -> Annotated:
    """The annotations of a file, images by their `file_name`.

    Raises:
        InputError: it cannot be read, or is none of COCO's.
    """
    try:
        content = json.loads(content_of(path, _MOST_BYTES))
        images, boxes, categories = (
            list(content[part]) for part in ("images", "annotations", "categories")
        )
        by_id = {
            one["id"]: (str(one["file_name"]), (_side(one["width"]), _side(one["height"])))
            for one in images
        }
        names = {one["id"]: str(one["name"]) for one in sorted(categories, key=lambda c: c["id"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise InputError(f"{path}: cannot be read ({told}); {_FORM}") from error
    faults = Faults(where=str(path))
    _refuse_twice(path, [name for name, _ in by_id.values()], "image")
    _refuse_twice(path, list(names.values()), "category")
    objects: dict[str, list[Named]] = {name: [] for name, _ in by_id.values()}
    for name, found in _objects(boxes, by_id, names, faults):
        objects[name].append(found)
    return Annotated(
        sizes=dict(by_id.values()),
        objects={name: tuple(found) for name, found in objects.items()},
        classes=tuple(names.values()),
        problems=faults.lines(),
    )


def _objects(
    boxes: list[Any],
    by_id: dict[Any, tuple[str, tuple[int, int]]],
    names: dict[Any, str],
    faults: Faults,
) -> Iterator[tuple[str, Named]]:
    """Every object that can be right, and the image that it is in."""
    for place, box in enumerate(boxes):
        case = f"annotation {box.get('id', place) if isinstance(box, dict) else place}"
        try:
            image, category = by_id.get(box["image_id"]), names.get(box["category_id"])
            sides = _sides(box["bbox"])
            ignored = bool(box.get("iscrowd", 0))
        except (KeyError, TypeError, ValueError, AttributeError):
            faults.note(("annotation has no box", "annotations have no box"), case, _FORM)
            continue
        if image is None:
            faults.note(
                ("annotation is of an unknown image", "annotations are of unknown images"),
                f"{case}: image_id {box['image_id']}",
                "list the image, or remove it",
            )
        elif category is None:
            faults.note(
                ("annotation is of an unknown category", "annotations are of unknown categories"),
                f"{case}: category_id {box['category_id']}, and there are "
                f"{listed(map(str, names))}",
                "list the category, or correct it",
            )
        else:
            name, size = image
            within = checked(sides, size, f"{case} in {name}", faults)
            if within is not None:
                yield name, Named(sides=within, name=category, ignored=ignored)


def _side(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a side of an image is {value!r}")
    return value


def _sides(box: Any) -> Sides:
    left, top, width, height = (float(value) for value in box)
    if not all(map(math.isfinite, (left, top, width, height))):
        raise ValueError("a side of a box is no number")
    return left, top, left + width, top + height


def _refuse_twice(path: Path, names: list[str], what: str) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{path}: lists the {what} {listed(twice)} more than once; name it once")
