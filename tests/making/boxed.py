"""Folders of images with boxes, as COCO's JSON and as Pascal VOC's XML."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.making.photos import write_image

WIDTH, HEIGHT = 40, 20
CATEGORIES = ((7, "cat"), (3, "ant"), (90, "bee"))
"""In no order, and with gaps."""
Row = tuple[str, str, tuple[float, float, float, float]]
TRAIN: tuple[Row, ...] = (
    ("a", "cat", (0, 0, 20, 10)),
    ("a", "bee", (10, 5, 30, 15)),
    ("b", "ant", (4, 2, 8, 20)),
)
TEST: tuple[Row, ...] = (("x", "bee", (0, 0, 40, 20)), ("y", "ant", (39, 19, 40, 20)))
NAMES = {"train": ("a", "b", "c"), "test": ("x", "y")}
"""Image c has no object."""


def coco(root: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Both sets under `root`; `change` is made to the test set's JSON."""
    for part, rows in (("train", TRAIN), ("test", TEST)):
        names = NAMES[part]
        content: dict[str, Any] = {
            "images": [
                {"id": 100 - n, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT}
                for n, name in enumerate(names)
            ],
            "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
            "annotations": [
                {
                    "id": n,
                    "image_id": 100 - names.index(image),
                    "category_id": {name: number for number, name in CATEGORIES}[kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                }
                for n, (image, kind, (left, top, right, bottom)) in enumerate(rows)
            ],
        }
        if change is not None and part == "test":
            change(content)
        _images(root / part / "images", names)
        (root / part / "annotations.json").write_text(json.dumps(content))
    return root


def voc(root: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    """Both sets under `root`; `change` is made to the XML of the test images."""
    for part, rows in (("train", TRAIN), ("test", TEST)):
        _images(root / part / "JPEGImages", NAMES[part])
        (root / part / "Annotations").mkdir(parents=True)
        for name in NAMES[part]:
            objects = "".join(_voc_object(kind, box) for image, kind, box in rows if image == name)
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
            text = change(text) if part == "test" else text
            (root / part / "Annotations" / f"{name}.xml").write_text(text)
    return root


def _voc_object(kind: str, box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = (int(side) for side in box)
    sides = {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom}
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in sides.items())
    return f"<object><name>{kind}</name><bndbox>{inner}</bndbox></object>"


def _images(folder: Path, names: tuple[str, ...]) -> None:
    for seed, name in enumerate(names):
        write_image(folder / f"{name}.png", seed, WIDTH, HEIGHT)
