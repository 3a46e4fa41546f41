"""Pictures of coloured shapes, any number of them in each, and the tables that say which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

LABELS = ("blue disc", "red square", "green bar")
SIDE = 32


def picture(labels: Sequence[int], draw: np.random.Generator) -> Image.Image:
    """One picture on grey noise, with the shapes that are not 0."""
    noise = draw.integers(90, 140, (SIDE, SIDE, 1), np.uint8)
    image = Image.fromarray(noise.repeat(3, 2))
    pen = ImageDraw.Draw(image)
    x, y, w = (int(one) for one in draw.integers(2, 18, 3))
    if labels[0]:
        pen.ellipse((x, y, x + 11, y + 11), (30, 30, 230))
    if labels[1]:
        pen.rectangle((y, w, y + 10, w + 10), (230, 30, 30))
    if labels[2]:
        pen.rectangle((w, 1, w + 4, SIDE - 2), (108, 123, 108))
    return image


def drawn(folder: Path, count: int, seed: int) -> NDArray[np.int64]:
    """Save pictures NN.png in a folder, and return their labels: 0 or 1 (pictures, labels)."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, (count, len(LABELS)))
    for row, one in enumerate(labels):
        picture(one, draw).save(folder / f"{row:02d}.png")
    return labels


def with_columns(folder: Path, labels: NDArray[np.int64]) -> None:
    """Write labels.csv with a column for every label."""
    lines = [",".join(["file", *LABELS])]
    lines += [
        f"{row:02d}.png,{','.join(str(value) for value in one)}" for row, one in enumerate(labels)
    ]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def with_lists(folder: Path, labels: NDArray[np.int64]) -> None:
    """Write labels.csv with a list of labels in every row."""
    lines = ["file,labels"]
    for row, one in enumerate(labels):
        names = [name for name, value in zip(LABELS, one, strict=True) if value]
        lines.append(f"{row:02d}.png,{'|'.join(names)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
