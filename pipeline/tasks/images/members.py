"""Images as members of tar archives: millions of them without an object for each."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.safe_files import open_file
from pipeline.tasks.images.files import MOST_BYTES
from pipeline.tasks.images.stored import STATE, state_of, unreadable

_SIZE, _INODE = 0, 3
_WRITTEN = 2
"""Numbers of a state that writing changes; a link to an archive changes the others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Members:
    """N images in S archives of one folder, as `Stored`.

    Attributes:
        folder: of the archives.
        archives: their names.
        states_then: int64 [S, STATE], of the archives when their headers were read.
        archive: int32 [N], which of them holds an image.
        offsets: int64 [N], where its bytes begin there.
        sizes: int64 [N], how many there are.
        text: names of the images, one after the other, as the archives have them.
        bounds: int64 [N + 1], where each begins in the text, and where the last one ends.
    """

    folder: Path
    archives: tuple[str, ...]
    states_then: NDArray[np.int64]
    archive: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    text: bytes
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.offsets)

    def name(self, row: int) -> str:
        """The archive and, behind a slash, the image's name in it."""
        inner = os.fsdecode(self.text[self.bounds[row] : self.bounds[row + 1]])
        return f"{self.archives[self.archive[row]]}/{inner}"

    def path(self, row: int) -> Path:
        """As `Stored`; there is no such file."""
        # Not joined by /, which would take a name that begins with a slash for all of the path.
        return Path(f"{self.folder}/{self.name(row)}")

    def content(self, row: int) -> bytes:
        """As `Stored`."""
        try:
            return self._content(row)
        except OSError as error:
            raise InputError(unreadable(self.path(row), error)) from error

    def _content(self, row: int) -> bytes:
        archive, size = int(self.archive[row]), int(self.sizes[row])
        if size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"is larger than {MOST_BYTES / 2**20:.0f} MiB")
        path = self.folder / self.archives[archive]
        with open_file(path) as file:
            now = state_of(os.fstat(file.fileno()))[:_WRITTEN]
            if now != tuple(self.states_then[archive, :_WRITTEN].tolist()):
                raise InputError(
                    f"{path}: was written to since its members were looked up; run again"
                )
            content = os.pread(file.fileno(), size, int(self.offsets[row]))
        if len(content) < size:
            raise OSError(errno.EIO, f"{len(content)} of {size} bytes are there")
        return content

    def names(self) -> bytes:
        """As `Stored`; of the archives, and of the images in them."""
        return b"\0".join(map(os.fsencode, self.archives)) + b"\0" + self.text

    def states(self) -> NDArray[np.int64]:
        """As `Stored`: the image's size, the archive's times, and a number of its place.

        That number is in the column of the inode, and like it another for each: it is made of the
        archive's inode and of the offset there.
        """
        of_archives = np.empty((len(self.archives), STATE), np.int64)
        for number, name in enumerate(self.archives):
            path = self.folder / name
            now = state_of(os.stat(path))
            if now[:_WRITTEN] != tuple(self.states_then[number, :_WRITTEN].tolist()):
                raise OSError(errno.ESTALE, "was written to since its members were read", str(path))
            of_archives[number] = (*now[:_INODE], _spread(now[_INODE]))
        found = of_archives[self.archive]
        found[:, _SIZE] = self.sizes
        found[:, _INODE] += self.offsets  # below 2**63: an archive has fewer than 2**62 bytes
        return found


def _spread(inode: int) -> int:
    """Far from that of the next inode, by more than an archive has bytes; below 2**62."""
    digest = hashlib.sha256(inode.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:8], "little") >> 2
