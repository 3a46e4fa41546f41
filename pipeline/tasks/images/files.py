"""Which files are images; loads at once, without torch."""

from __future__ import annotations

from pathlib import Path

from pipeline.base.errors import InputError

MOST_BYTES = 256 * 2**20
"""Of an image file."""
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_files(path: Path) -> list[Path]:
    """The image files of a path: itself, or those directly in a directory, by name.

    Raises:
        InputError: there is none.
    """
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())
        if not found:
            raise InputError(f"{path}: no images in it ({' '.join(EXTENSIONS)})")
        return found
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory; give an image, a directory, or -")
    return [path]
