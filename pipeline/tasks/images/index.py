"""What is known of the files of a folder: one hash each, taken once.

The index of a folder is a file in the cache. Of every image it has size, times and inode, the
SHA-256 of its bytes, and whether they are an image: 65 bytes. A later start looks at the files and
reads those alone that are not in there as they are now, under whatever name.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.passing import is_passing
from pipeline.base.safe_files import open_file
from pipeline.base.store import INDEX
from pipeline.tasks.images.stored import STATE

UNKNOWN, HASHED, SOUND, DAMAGED = range(4)
"""What is known of a file: nothing; its bytes; that they decode; that they do not."""
_INODE = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """N images.

    Attributes:
        states: int64 [N, STATE], as `Stored.states`.
        digests: uint8 [N, 32], SHA-256 of every file's bytes.
        known: uint8 [N], UNKNOWN, HASHED, SOUND or DAMAGED.
        decoder: key of what decoded them.
        place: name of where they lie decoded, if they were.
    """

    states: NDArray[np.int64]
    digests: NDArray[np.uint8]
    known: NDArray[np.uint8]
    decoder: str
    place: str = ""

    @classmethod
    def empty(cls, states: NDArray[np.int64], decoder: str) -> Index:
        """Of images of which nothing is known."""
        count = len(states)
        return cls(
            states=states,
            digests=np.zeros((count, 32), np.uint8),
            known=np.full(count, UNKNOWN, np.uint8),
            decoder=decoder,
        )

    def of(self, states: NDArray[np.int64], decoder: str) -> Index:
        """What is known of files, in another order and number, as they are now."""
        found = Index.empty(states, decoder)
        if len(self.states) == 0 or len(states) == 0:
            return found
        if np.array_equal(self.states, states):
            own, rows = slice(None), slice(None)
        else:
            own, rows = matched(self.states, states)
        found.digests[rows] = self.digests[own]
        known = self.known[own]
        if decoder != self.decoder:  # another may decode others
            known = np.minimum(known, HASHED)
        found.known[rows] = known
        return found


Rows = Any
"""Indices of an array, or a slice."""


def matched(old: NDArray[np.int64], new: NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Rows of `old` and of `new` that are the same files, one beside the other."""
    order = np.argsort(old[:, _INODE], kind="stable")
    places = np.searchsorted(old[order, _INODE], new[:, _INODE])
    own = order[np.minimum(places, len(order) - 1)]
    rows = (old[own] == new).all(1).nonzero()[0]
    return own[rows], rows


def index_of(cache: Path, root: Path) -> Path:
    """Where the index of a folder is kept."""
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:20]
    return cache / INDEX / f"{name}.npz"


def read_index(path: Path) -> Index | None:
    """An index, whole as it was written (its parts have checksums); None where there is none.

    Raises:
        OSError: it cannot be read now; it stays.
    """
    parts = read_arrays(path, ("states", "digests", "known", "decoder", "place"))
    if parts is None:
        return None
    found = Index(
        states=parts["states"],
        digests=parts["digests"],
        known=parts["known"],
        decoder=str(parts["decoder"]),
        place=str(parts["place"]),
    )
    count = len(found.states)
    shapes = (found.states.shape, found.digests.shape, found.known.shape)
    return found if shapes == ((count, STATE), (count, 32), (count,)) else None


def write_index(path: Path, index: Index) -> None:
    """Write an index whole, in place of the one before.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    parts: dict[str, NDArray[Any]] = {
        "states": index.states,
        "digests": index.digests,
        "known": index.known,
        "decoder": np.array(index.decoder),
        "place": np.array(index.place),
    }
    write_arrays(path, parts)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
    """Arrays as `write_arrays` wrote them (they have checksums); None where they are not there.

    Raises:
        OSError: they cannot be read now; they stay.
    """
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as parts:
            return {name: parts[name] for name in names}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if is_passing(error):
            raise
        return None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays whole, in place of those before.

    Raises:
        OSError: they cannot be written; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def parts_of(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Rows, some at a time."""
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]
