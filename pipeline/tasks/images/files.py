"""Which files are images; loads at once, without torch."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from pipeline.base.errors import InputError, listed

MOST_BYTES = 256 * 2**20
"""Of an image file."""
EXTENSIONS: tuple[str, ...] = (
    *(".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Read everywhere."""
LINKS = "links"
"""In the place of a suffix, of what is no file in an archive."""
_AVIF, _HEIF = (".avif",), (".heic", ".heif", ".hif")
_OTHERS = (
    *(".gif", ".ico", ".j2k", ".jp2", ".jxl", ".psd", ".svg", ".tga"),
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"),
)
_FIXES = {
    **dict.fromkeys(_HEIF, "`pip install pillow-heif` reads them, or save them as JPEG or PNG"),
    **dict.fromkeys(_AVIF, "Pillow 11.3 or later reads them, or save them as JPEG or PNG"),
    **dict.fromkeys(_OTHERS, "save them as JPEG or PNG"),
    LINKS: "links and devices in archives are not followed; write the images themselves",
}
"""Pictures that are not read, by suffix, and what to do."""
_NO_SUFFIX = "no suffix"
_OF_SYSTEMS = ("desktop.ini", "thumbs.db")
"""What systems leave beside pictures, as they do hidden files."""


@functools.cache
def extensions() -> tuple[str, ...]:
    """The suffixes that are read here, in lower case."""
    found = EXTENSIONS
    if find_spec("PIL._avif") is not None:
        found += _AVIF
    if find_spec("pillow_heif") is not None:
        found += _HEIF
    return tuple(sorted(found))


def is_image(file: Path) -> bool:
    """Whether a file is read as an image, by its name."""
    return names_image(file.name)


def names_image(name: str) -> bool:
    """Whether a file of this name, without its folder, is read as an image."""
    dot = name.rfind(".")
    return dot > 0 and name[dot:].lower() in extensions() and not name.startswith(".")


def is_passed_over(file: Path) -> bool:
    """Whether a file is to be named, since it is not read; hidden files are not."""
    hidden = file.name.startswith(".") or file.name.lower() in _OF_SYSTEMS
    return not hidden and not is_image(file)


def is_picture(file: Path) -> bool:
    """Whether a file that is passed over is a picture all the same, by its name."""
    return file.suffix.lower() in _FIXES


def suffixes(files: Iterable[Path]) -> dict[str, int]:
    """How many files have each suffix, in lower case, the most frequent first."""
    return dict(Counter(file.suffix.lower() or _NO_SUFFIX for file in files).most_common())


def passed_over(files: Iterable[Path]) -> Iterator[str]:
    """Lines about files that are passed over: how many of which suffix, and what to do."""
    files = list(files)
    first: dict[str, Path] = {}
    for file in files:
        first.setdefault(file.suffix.lower() or _NO_SUFFIX, file)
    counts = suffixes(files)
    return told_of({suffix: (counts[suffix], file) for suffix, file in first.items()})


def told_of(counts: Mapping[str, tuple[int, object]]) -> Iterator[str]:
    """The same of how many there are of each suffix, and one of them."""
    groups: dict[str, list[str]] = {}
    for suffix in counts:
        groups.setdefault(_FIXES.get(suffix, "no image by its name"), []).append(suffix)
    for fix, group in groups.items():
        ordered = sorted(group, key=lambda suffix: -counts[suffix][0])
        told = listed(f"{counts[suffix][0]} {suffix}" for suffix in ordered)
        yield f"passed over: {told} (such as {counts[group[0]][1]}); {fix}"


def image_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The image files of a path, itself or those directly in a directory, by name.

    Returns:
        The image files, and those that are passed over.

    Raises:
        InputError: there is none.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file())
        found = [file for file in files if is_image(file)]
        others = [file for file in files if is_passed_over(file)]
        if not found:
            lines = "".join(f"\n{path}: {line}" for line in passed_over(others))
            raise InputError(f"{path}: no images in it ({' '.join(extensions())}){lines}")
        return found, others
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory; give an image, a directory, or -")
    return [path], []
