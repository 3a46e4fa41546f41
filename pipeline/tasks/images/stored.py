"""Image files as they lie on a disk: millions of names without an object for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of
from pipeline.tasks.images.files import MOST_BYTES

STATE = 4
"""Numbers by which a file counts as unchanged: size, times of modification and change, inode.

The time of change (ctime) also moves where a copy sets back the time of modification."""


class Stored(Protocol):
    """N images that can be read, each by its row."""

    def __len__(self) -> int:
        """N."""

    def path(self, row: int) -> Path:
        """What names an image in messages."""

    def name(self, row: int) -> str:
        """The same, from the folder of all of them, with / between."""

    def content(self, row: int) -> bytes:
        """The bytes of an image file.

        Raises:
            InputError: it cannot be read, or is too large.
        """

    def states(self) -> NDArray[np.int64]:
        """What changes where the bytes of an image do: int64 [N, STATE].

        Raises:
            OSError: a file cannot be looked at.
        """

    def names(self) -> bytes:
        """What decides the order of the images, and where each of them lies in its folder."""


@dataclass(frozen=True, eq=False)
class Files(Sequence[Path]):
    """Files of one folder; a path is made where one is asked for.

    Attributes:
        root: the folder.
        text: the names from there, one after the other, as the file system has them.
        bounds: int64 [N + 1], where each begins in the text, and where the last one ends.
    """

    root: Path
    text: bytes
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> Files:
        """The files of a folder by their names from there, with / between."""
        encoded = [os.fsencode(name) for name in names]
        return cls(root, b"".join(encoded), bounds_of(map(len, encoded), len(encoded)))

    @classmethod
    def joined(cls, root: Path, parts: Sequence[Files]) -> Files:
        """The files of several parts of one folder, in their order."""
        lengths = [np.diff(part.bounds) for part in parts]
        bounds = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
        return cls(root, b"".join(part.names() for part in parts), bounds)

    def __len__(self) -> int:
        """Number of files, N."""
        return len(self.bounds) - 1

    def name(self, row: int) -> str:
        """From the folder, with / between."""
        return os.fsdecode(self.text[self.bounds[row] : self.bounds[row + 1]])

    def path(self, row: int) -> Path:
        """Of a file."""
        return self.root / self.name(row)

    @overload
    def __getitem__(self, row: int) -> Path: ...

    @overload
    def __getitem__(self, row: slice) -> Files: ...

    def __getitem__(self, row: int | slice) -> Path | Files:
        """A file, or the files from one row to another, which share the text."""
        if isinstance(row, int):
            return self.path(range(len(self))[row])
        begin, end, step = row.indices(len(self))
        if step != 1:
            raise ValueError(f"rows of files: got a step of {step}; must be 1")
        return Files(self.root, self.text, self.bounds[begin : max(begin, end) + 1])

    def __iter__(self) -> Iterator[Path]:
        """Every file, in order."""
        return map(self.path, range(len(self)))

    def content(self, row: int) -> bytes:
        """As `Stored`."""
        return bytes_of(self.path(row))

    def names(self) -> bytes:
        """The names of these files alone; where each begins is in `bounds`."""
        return self.text[self.bounds[0] : self.bounds[-1]]

    def states(self) -> NDArray[np.int64]:
        """As `Stored`."""
        found = np.empty((len(self), STATE), np.int64)
        root = os.path.join(os.fsencode(self.root), b"")
        bounds, text = self.bounds.tolist(), self.text
        for row in range(len(self)):
            found[row] = state_of(os.stat(root + text[bounds[row] : bounds[row + 1]]))
        return found


def state_of(found: os.stat_result) -> tuple[int, int, int, int]:
    """What of a file changes where its content does."""
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino & (2**63 - 1))


def bounds_of(lengths: Iterable[int], count: int) -> NDArray[np.int64]:
    """Where each of `count` texts of such lengths begins, and where the last one ends."""
    bounds = np.zeros(count + 1, np.int64)
    bounds[1:] = np.fromiter(lengths, np.int64, count).cumsum()
    return bounds


def bytes_of(file: Path) -> bytes:
    """The content of an image file.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    try:
        return content_of(file, MOST_BYTES)
    except OSError as error:
        raise InputError(unreadable(file, error)) from error


def unreadable(file: Path, error: Exception) -> str:
    """What is told of an image that cannot be read or decoded."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(text.split()) or type(error).__name__
    if "cannot identify image file" in reason:
        reason = "not an image"
    return f"cannot read image {file}: {reason}; replace the file or remove it"
