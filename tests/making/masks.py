"""Folders of images with masks, drawn: a square of a class of its own on a background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "red", "void", "green")
"""Of classes.txt; 2 is void."""
VOID = 2
COLOURS = {1: (200, 40, 30), 3: (40, 180, 60)}


def drawn(
    root: Path,
    sets: dict[str, int],
    size: tuple[int, int] = (32, 40),
    *,
    seed: int = 0,
    palette: bool = True,
) -> Path:
    """Write images and masks of `size` (height, width); a border of void around each square."""
    random = np.random.default_rng(seed)
    height, width = size
    for name, count in sets.items():
        for folder in ("images", "masks"):
            (root / name / folder).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            mask = np.zeros(size, np.uint8)
            image = np.full((height, width, 3), 90, np.uint8)
            value = (1, 3)[row % 2]
            side = int(random.integers(8, 17))
            y, x = int(random.integers(1, height - side)), int(random.integers(1, width - side))
            mask[y - 1 : y + side + 1, x - 1 : x + side + 1] = VOID
            mask[y : y + side, x : x + side] = value
            image[y : y + side, x : x + side] = COLOURS[value]
            noise = random.integers(-20, 21, image.shape)
            Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(
                root / name / "images" / f"{row:03d}.png"
            )
            save_mask(root / name / "masks" / f"{row:03d}.png", mask, palette=palette)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def save_mask(file: Path, mask: np.ndarray, *, palette: bool = True) -> None:
    """Write a mask, its values as they are, with a palette or in grey."""
    picture = Image.fromarray(mask)
    if palette:
        picture = picture.convert("P")
        picture.putdata(mask.flatten().tolist())
        picture.putpalette([(7 * n) % 256 for n in range(768)])
    picture.save(file)
