"""What lies in a folder of class folders: classes, images, and files that are passed over."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import listed
from pipeline.tasks.images.files import (
    extensions,
    is_image,
    is_passed_over,
    is_picture,
    names_image,
    passed_over,
    suffixes,
)
from pipeline.tasks.images.stored import Files, Stored


class Scanned(Protocol):
    """The images of one set, before any of them is read."""

    @property
    def key(self) -> str:
        """Of the recipe, which names the set."""

    @property
    def root(self) -> Path:
        """Where the set lies, as the recipe says."""

    @property
    def images(self) -> Stored:
        """All of them."""

    def by_class(self) -> Iterator[tuple[str, slice | NDArray[np.int64]]]:
        """Every class that has images, and their rows."""

    def notes(self) -> list[str]:
        """What the user is to know of it, a line each."""

    def passed_over(self) -> dict[str, int]:
        """How many files of each suffix are passed over."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A folder of class folders.

    Attributes:
        key: of the recipe, which names the folder.
        root: the folder.
        images: of all classes, one class after the other; classes and images are sorted.
        counts: of images, by class.
        empty: names of folders without images, which are no classes.
        others: files that are passed over, pictures of other kinds among them, and images that lie
            in no class folder.
        problems: what is wrong with it, a line each.
    """

    key: str
    root: Path
    images: Files
    counts: Mapping[str, int]
    empty: tuple[str, ...] = ()
    others: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()

    def by_class(self) -> Iterator[tuple[str, slice]]:
        """As `Scanned`."""
        begin = 0
        for name, count in self.counts.items():
            yield name, slice(begin, begin + count)
            begin += count

    def passed_over(self) -> dict[str, int]:
        """As `Scanned`."""
        return suffixes(self.others)

    def notes(self) -> list[str]:
        """What the user is to know of it, a line each."""
        lines = []
        if self.empty:
            names = listed(repr(name) for name in self.empty)
            lines.append(f"no classes, since no image is in these folders: {names}")
        if loose := [file for file in self.others if is_image(file)]:
            lines.append(
                f"in no class folder, and passed over: {listed(file.name for file in loose)}"
            )
        lines += passed_over(file for file in self.others if not is_image(file))
        return [f"{self.key}: {line}" for line in lines]


def scan_folder(key: str, root: Path, fewest: int = 2) -> Scan:
    """Class folders of `root` with their images, and what is wrong with them.

    Args:
        key: see `Scan`.
        root: see `Scan`.
        fewest: classes that it must hold, 1 or 2.

    As in torchvision's ImageFolder, a class folder may hold further folders (links to folders
    inside it are not followed), and files without an image's suffix are passed over. Hidden
    folders are no classes, and neither are folders that hold no picture at all.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        told = f"{key}: {root} {state}; give a folder that holds one folder per class"
        return _nothing(key, root, told)
    entries = sorted(root.iterdir())
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    images, others = {}, {}
    for folder in folders:
        names = _names_below(folder)
        images[folder.name] = Files.of(root, (f"{folder.name}/{name}" for name in _images(names)))
        others[folder.name] = _passed_over(folder, names)
    unread = {
        name: pictures
        for name, found in others.items()
        if not images[name] and (pictures := [file for file in found if is_picture(file)])
    }
    counts = {name: len(found) for name, found in images.items() if found}
    problems = [
        f"{key}: class '{name}' has no images in {root / name} that are read; {line}"
        for name, pictures in unread.items()
        for line in passed_over(pictures)
    ]
    if not problems:
        empty = [name for name in images if name not in counts]
        problems = _too_few(key, root, list(counts), empty, fewest)
    beside = [entry for entry in entries if entry.is_file()]
    return Scan(
        key=key,
        root=root,
        images=Files.joined(root, list(images.values())),
        counts=counts,
        empty=tuple(name for name in images if name not in counts and name not in unread),
        others=(
            *(file for found in others.values() for file in found),
            *(file for file in beside if is_image(file) or is_passed_over(file)),
        ),
        problems=tuple(problems),
    )


def scan_all(key: str, root: Path, leave: Callable[[Path], bool] = lambda file: False) -> Scan:
    """All images below `root`, in folders or not, as of one class without a name.

    Args:
        key: see `Scan`.
        root: see `Scan`.
        leave: whether a file is neither an image nor passed over.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        return _nothing(key, root, f"{key}: {root} {state}; give a folder of images")
    names = _names_below(root)
    images = Files.of(root, _images(names))
    told = f"{key}: {root} holds no images that are read ({' '.join(extensions())})"
    return Scan(
        key=key,
        root=root,
        images=images,
        counts={"": len(images)},
        others=tuple(file for file in _passed_over(root, names) if not leave(file)),
        problems=() if images else (told,),
    )


def class_differences(
    scan: Scanned, expected: set[str], what: str = "class folders", empty: Collection[str] = ()
) -> list[str]:
    """What is wrong with the classes of a scan, where train has `expected`; [] if nothing.

    Args:
        scan: of a set.
        expected: names of classes.
        what: classes are there, in words.
        empty: names of folders without images.
    """
    names = {name for name, _ in scan.by_class()}
    if not names or names == expected:
        return []
    missing = [
        f"{name!r}{' (no image is in its folder)' if name in empty else ''}"
        for name in sorted(expected - names)
    ]
    more = [repr(name) for name in sorted(names - expected)]
    parts = [
        f"{label} {', '.join(group)}"
        for label, group in (("missing", missing), ("not in train", more))
        if group
    ]
    return [f"{scan.key}: {what} differ from data.train's: {'; '.join(parts)}; make them equal"]


def _too_few(key: str, root: Path, names: list[str], empty: list[str], fewest: int) -> list[str]:
    few = f"at least {fewest} {'class is' if fewest == 1 else 'classes are'} needed"
    if not names and not empty:
        return [
            f"{key}: {root} is empty of class folders; put images ({' '.join(extensions())}) in "
            f"{root}/<class>/"
        ]
    beside = f" (no image is in {listed(map(repr, empty))})" if empty else ""
    if not names:
        return [f"{key}: {root} holds no images that are read{beside}; {few}"]
    if len(names) < fewest:
        return [f"{key}: {root} holds one class only, '{names[0]}'{beside}; at least 2 are needed"]
    return []


def _nothing(key: str, root: Path, told: str) -> Scan:
    return Scan(key=key, root=root, images=Files.of(root, ()), counts={}, problems=(told,))


def _names_below(folder: Path) -> list[str]:
    """Names of the files below a folder, from there, in the order of their paths.

    Links to folders are not followed, and folders that cannot be read are passed over.
    """
    found, left = [], [("", os.fspath(folder))]
    while left:
        prefix, place = left.pop()
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_dir():
                    found.append(prefix + entry.name)
                elif not entry.is_symlink():
                    left.append((f"{prefix}{entry.name}/", entry.path))
    # Paths are ordered part by part: what ends a part comes before any letter.
    return sorted(found, key=lambda name: name.replace("/", "\0"))


def _images(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if names_image(name.rpartition("/")[2]))


def _passed_over(folder: Path, names: Iterable[str]) -> list[Path]:
    others = (folder / name for name in names if not names_image(name.rpartition("/")[2]))
    return [file for file in others if is_passed_over(file)]
