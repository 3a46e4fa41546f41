"""Annotations in Pascal VOC's XML, one file an image.

A box is xmin, ymin, xmax, ymax in pixels that count from 1, both ends inside: 1 to 4 is from 0 to 4
here. What is `difficult` is ignored where boxes are judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of
from pipeline.tasks.images.annotations import Annotated, Faults, Named, Sides, checked

FOLDERS = ("Annotations", "annotations")
_MOST_BYTES = 16 * 2**20
_FORM = (
    "it must hold size (width, height) and, of every object, name and bndbox (xmin, ymin, xmax, "
    "ymax), as Pascal VOC's do"
)


def voc_folder(root: Path) -> Path:
    """The folder of a set's XML files.

    Raises:
        InputError: there is none.
    """
    for name in FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise InputError(f"{root}: holds no folder {' or '.join(FOLDERS)}, which has the XML files")


def read_voc(folder: Path) -> Annotated:
    """The annotations of a folder, images by the stems of their files.

    Raises:
        InputError: a file cannot be read, or is none of Pascal VOC's.
    """
    faults = Faults(where=str(folder))
    sizes: dict[str, tuple[int, int]] = {}
    objects: dict[str, tuple[Named, ...]] = {}
    for file in sorted(folder.glob("*.xml")):
        root = _parsed(file)
        try:
            sizes[file.stem] = (_number(root, "size/width"), _number(root, "size/height"))
            objects[file.stem] = tuple(_objects(file, root, sizes[file.stem], faults))
        except ValueError as error:
            raise InputError(f"{file}: {error}; {_FORM}") from error
    names = {one.name for found in objects.values() for one in found}
    return Annotated(
        sizes=sizes, objects=objects, classes=tuple(sorted(names)), problems=faults.lines()
    )


def stem_of(name: str) -> str:
    """What names an image in Pascal VOC: its file's name without folder and suffix."""
    return PurePosixPath(name).stem


def _parsed(file: Path) -> ElementTree.Element:
    try:
        content = content_of(file, _MOST_BYTES)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise ValueError("it declares entities")
        return ElementTree.fromstring(content)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise InputError(f"{file}: cannot be read ({error}); {_FORM}") from error


def _objects(
    file: Path, root: ElementTree.Element, size: tuple[int, int], faults: Faults
) -> Iterator[Named]:
    for place, one in enumerate(root.findall("object")):
        name = (one.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"object {place + 1} has no name")
        within = checked(_sides(one), size, f"object {place + 1} in {file.name}", faults)
        if within is not None:
            difficult = (one.findtext("difficult") or "0").strip() == "1"
            yield Named(sides=within, name=name, ignored=difficult)


def _sides(one: ElementTree.Element) -> Sides:
    left, top, right, bottom = (
        _real(one, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
    )
    # The last pixel is inside, so that a box of one pixel has its first and last in common.
    return left - 1, top - 1, right, bottom


def _real(element: ElementTree.Element, path: str) -> float:
    text = (element.findtext(path) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} is {text!r}, no number")
    return value


def _number(element: ElementTree.Element, path: str) -> int:
    value = _real(element, path)
    if value < 1 or value != int(value):
        raise ValueError(f"{path} is {value:g}, no side of an image")
    return int(value)
