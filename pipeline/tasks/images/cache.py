"""Decoded images on disk: a later run neither reads nor decodes files that have not changed.

The images of one folder lie in `<cache>/<key>/`, where the key is a hash of everything that
decides them: `pixels.npy` (uint8 [N, C, H, W]), `digests.npy` (uint8 [N, 32], the SHA-256 of every
file), `sums.npy` (uint32 [N], the CRC-32 of every image) and the hashes of these two. What does not
match them is made again; of the pixels, which may be hundreds of gigabytes, each image when it is
read first. What was hashed is in the folder's index besides (`index`), decoded or not.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__ as pillow
from PIL import features
from torch import Tensor

from pipeline.base import disk
from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.safe_files import remove
from pipeline.base.store import LOCKS, MAKING, key_of, publish
from pipeline.tasks.images import kept as kept_images
from pipeline.tasks.images import pixels as image_pixels
from pipeline.tasks.images import plugins
from pipeline.tasks.images import preparation as image_preparation
from pipeline.tasks.images.index import (
    DAMAGED,
    HASHED,
    SOUND,
    Index,
    index_of,
    matched,
    parts_of,
    read_index,
    write_index,
)
from pipeline.tasks.images.kept import (
    DIGESTS,
    PIXELS,
    SUMS,
    KeptImages,
    header_of,
    open_kept,
)
from pipeline.tasks.images.preparation import Preparation
from pipeline.tasks.images.stored import Stored

_RESERVE_BYTES = 2**30
"""Left free on the disk for the results of the stages."""
_HASHED_AT_A_TIME = 4096
_SECONDS, _MOST_OF_THE_TIME = 60.0, 0.02
"""Between two states of an index that is being made, and the share of the time to write them."""


class _NoRoomError(Exception):
    """The disk has no space for decoded images; the message is for the user."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Image files, decoded where there is room for it.

    Attributes:
        source: as `Images.source`, for N files.
        digests: SHA-256 of each file's bytes; zeros where it cannot be decoded: uint8 [N, 32].
        note: a line for the user where the disk has no space to keep the images.
    """

    source: Tensor | KeptImages | Stored
    digests: NDArray[np.uint8]
    note: str | None = None


def kept_or_decoded(
    root: Path,
    files: Stored,
    preparation: Preparation,
    cache: Path | None,
    *,
    in_memory: bool,
    skip: bool = False,
) -> Decoded:
    """Find image files decoded on disk, or decode them.

    Args:
        root: folder of the files; where it lies does not matter to the decoded images.
        files: N image files.
        preparation: of a decoded image.
        cache: directory that keeps decoded images; None keeps none.
        in_memory: without a cache, decode now; otherwise when asked for.
        skip: whether damaged files are passed over.

    Raises:
        InputError: files cannot be read, or the disk gives back other bytes than were written.
    """
    note, every = None, np.arange(len(files))
    if cache is not None:
        folder = _look_at(root, files, preparation, cache)
        try:
            kept, digests = _kept(folder, skip=skip)
            return Decoded(source=kept, digests=digests)
        except _NoRoomError as error:
            note = str(error)
        if not in_memory:
            return Decoded(source=files, digests=_hashed(folder, skip=skip), note=note)
    if not in_memory:
        digests = image_pixels.read_files(files, every, preparation, None, skip=skip)
        return Decoded(source=files, digests=digests, note=note)
    whole = np.empty(preparation.whole.batch(len(files)), np.uint8)
    digests = image_pixels.read_files(files, every, preparation, whole.__setitem__, skip=skip)
    return Decoded(source=torch.from_numpy(whole), digests=digests, note=note)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Folder:
    """Files as they are now, and where what is known of them is kept."""

    root: Path
    files: Stored
    preparation: Preparation
    states: NDArray[np.int64]
    cache: Path
    place: Path

    @property
    def index(self) -> Path:
        return index_of(self.cache, self.root)


def _look_at(root: Path, files: Stored, preparation: Preparation, cache: Path) -> _Folder:
    try:
        states = files.states()
    except OSError as error:
        every = np.arange(len(files))
        image_pixels.read_files(files, every, preparation, None)  # raises, and names more of them
        raise InputError(f"{root}: its files change while they are read; run again") from error
    return _Folder(
        root=root,
        files=files,
        preparation=preparation,
        states=states,
        cache=cache,
        place=cache / _key(files, states, preparation),
    )


def _kept(folder: _Folder, *, skip: bool) -> tuple[KeptImages, NDArray[np.uint8]]:
    """Pixels that are read when asked for, and the digests; decoded first where they do not lie.

    Raises:
        _NoRoomError: they do not fit on the disk. Nothing is left there.
    """
    place = folder.place
    found = _open(folder)
    if found is None:
        folder.cache.mkdir(parents=True, exist_ok=True)
        with held(folder.cache / LOCKS / f"{place.name}.json", lambda owner: None):
            found = _open(folder)  # another process may just have made it
            if found is None:
                _make(folder, skip=skip)
                found = _open(folder)
    if found is None:
        raise InputError(f"{place}: reads back otherwise than it was written; check the disk")
    if not skip:
        _refuse_damaged(folder, (~found[1].any(1)).nonzero()[0])
    return found


def _refuse_damaged(folder: _Folder, rows: NDArray[np.int64]) -> None:
    """Name the files that a run which skips damaged ones has skipped."""
    if len(rows):
        path = folder.files.path(int(rows[0]))
        image_pixels.read_files(folder.files, rows, folder.preparation, lambda row, pixels: None)
        raise InputError(f"{path}: could not be decoded before, and can be now; run again")


def _hashed(folder: _Folder, *, skip: bool) -> NDArray[np.uint8]:
    """The digest of every file, of the index or, where a file is not in there, of its bytes."""
    folder.cache.mkdir(parents=True, exist_ok=True)
    with held(folder.cache / LOCKS / f"{folder.index.stem}.json", lambda owner: None):
        index = _index(folder)
        # Only decoding tells whether a file is damaged.
        unknown = index.known < (SOUND if skip else HASHED)
        began = time.monotonic()
        wait = _SECONDS
        for rows in parts_of(unknown.nonzero()[0], _HASHED_AT_A_TIME):
            digests = image_pixels.read_files(
                folder.files, rows, folder.preparation, None, skip=skip
            )
            _learn(index, rows, digests, decoded=skip)
            if (now := time.monotonic()) - began > wait:
                _remember(folder, index)
                began = time.monotonic()
                wait = max(_SECONDS, (began - now) / _MOST_OF_THE_TIME)
        if unknown.any():
            _remember(folder, index)
    damaged = index.known == DAMAGED
    if not skip:
        _refuse_damaged(folder, damaged.nonzero()[0])
    digests = index.digests.copy()
    digests[damaged] = 0
    return digests


def _index(folder: _Folder) -> Index:
    """What is known of the files as they are now."""
    found, decoder = read_index(folder.index), _decoder_key()
    if found is None:
        return Index.empty(folder.states, decoder)
    return found.of(folder.states, decoder)


def _remember(folder: _Folder, index: Index) -> None:
    """Write an index; on a full disk there is none, and the files are hashed again."""
    try:
        write_index(folder.index, index)
    except OSError as error:
        if not disk.is_full(error, folder.cache):
            raise


def _learn(
    index: Index, rows: NDArray[np.int64], digests: NDArray[np.uint8], *, decoded: bool
) -> None:
    """Put into an index what was found of some of its files."""
    sound = digests.any(1)
    index.digests[rows[sound]] = digests[sound]
    index.known[rows] = np.where(sound, SOUND if decoded else HASHED, DAMAGED)


def place_of(files: Stored, preparation: Preparation, cache: Path) -> Path:
    """Where images lie decoded, as their files are now, if they lie there.

    Raises:
        OSError: a file cannot be looked at.
    """
    return cache / _key(files, files.states(), preparation)


def _key(files: Stored, states: NDArray[np.int64], preparation: Preparation) -> str:
    """Of everything that decides the pixels and their order."""
    listed = hashlib.sha256(files.names())
    listed.update(states.tobytes())
    return key_of({"files": listed.hexdigest(), **_decoder(), **_prepared(preparation)})


def _prepared(preparation: Preparation) -> dict[str, Any]:
    return {"preparation": preparation.ingredients()}


def _decoder() -> dict[str, Any]:
    """What reads the files, as plain JSON."""
    codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp")}
    return {"code": _code(), "pillow": pillow, "codecs": codecs | plugins.versions()}


def _decoder_key() -> str:
    return key_of(_decoder())


@functools.cache
def _code() -> str:
    """Hash of the source of what decodes and writes."""
    modules = (image_pixels, image_preparation, kept_images, plugins)
    sources = (*(Path(str(module.__file__)) for module in modules), Path(__file__))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def _make(folder: _Folder, *, skip: bool) -> None:
    """Decode the files into their place, which appears whole or not at all."""
    place, shape = folder.place, folder.preparation.whole
    needed = math.prod(shape.batch(len(folder.files)))
    full = (
        f"no disk space left in {place.parent.resolve()} to keep the images of {folder.root} "
        f"decoded ({needed / 1e9:.1f} GB, with {_RESERVE_BYTES / 1e9:.1f} GB left free): every run "
        "decodes them again until there is"
    )
    for left in place.parent.glob(f"{MAKING}-{place.name}-*"):
        remove(left)  # of a process that was killed
    remove(place)  # damaged, where it is there at all
    if shutil.disk_usage(place.parent).free < needed + _RESERVE_BYTES:
        raise _NoRoomError(full)
    scratch = Path(tempfile.mkdtemp(prefix=f"{MAKING}-{place.name}-", dir=place.parent))
    try:
        digests, sums = _write_pixels(scratch / PIXELS, folder, skip=skip)
        np.save(scratch / DIGESTS, digests)
        np.save(scratch / SUMS, sums)
        publish(scratch, place, unsealed=(PIXELS,))
        index = Index.empty(folder.states, _decoder_key())
        _learn(index, np.arange(len(digests)), digests, decoded=True)
        _remember(folder, replace(index, place=f"{_earlier_key(folder)} {place.name}"))
    except OSError as error:
        if disk.is_full(error, place.parent):
            raise _NoRoomError(full) from error
        raise
    finally:
        remove(scratch)


def _earlier_key(folder: _Folder) -> str:
    return key_of({**_decoder(), **_prepared(folder.preparation)})


def _earlier(folder: _Folder) -> tuple[KeptImages, Index] | None:
    """The images of the folder as it was before, where they lie decoded in the same way."""
    index = read_index(folder.index)
    if index is None or not index.place.startswith(f"{_earlier_key(folder)} "):
        return None
    place = folder.cache / index.place.partition(" ")[2]
    shape = folder.preparation.whole
    found = open_kept(place, len(index.states), shape, lambda row: np.empty(0, np.uint8))
    return None if found is None else (found[0], index)


def _write_pixels(
    path: Path, folder: _Folder, *, skip: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Decode the files into one array file; the digest of each file's bytes, and the checksums.

    What is skipped is zero there.
    """
    count, shape = len(folder.files), folder.preparation.whole
    digests, sums = np.zeros((count, 32), np.uint8), np.zeros(count, np.uint32)
    header = header_of(count, shape)
    with path.open("wb") as file:
        file.write(header)
        file.flush()
        os.truncate(file.fileno(), len(header) + math.prod(shape.batch(count)))

        # Written, not mapped: a full disk is an error then, and not a crash.
        def write(index: int, pixels: NDArray[np.uint8]) -> None:
            content = pixels.tobytes()
            place = len(header) + index * len(content)
            if os.pwrite(file.fileno(), content, place) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            sums[index] = zlib.crc32(content)

        rows = _copied(folder, digests, write)
        digests[rows] = image_pixels.read_files(
            folder.files, rows, folder.preparation, write, skip=skip
        )
    return digests, sums


def _copied(
    folder: _Folder,
    digests: NDArray[np.uint8],
    write: Callable[[int, NDArray[np.uint8]], None],
) -> NDArray[np.int64]:
    """Take over the images that have not changed; the rows of the others are returned."""
    left = np.ones(len(folder.files), np.bool_)
    if (earlier := _earlier(folder)) is not None:
        kept, index = earlier
        own, rows = matched(index.states, folder.states)
        for old, row in zip(own.tolist(), rows.tolist(), strict=True):
            if index.known[old] != SOUND:
                continue
            with suppress(InputError):  # it is not as it was written
                write(row, kept.take(np.array([old]))[0])
                digests[row], left[row] = index.digests[old], False
    rest: NDArray[np.int64] = left.nonzero()[0]
    return rest


def _open(folder: _Folder) -> tuple[KeptImages, NDArray[np.uint8]] | None:
    """What lies in the place of a folder's images; None where it is not what was written.

    Raises:
        OSError: it cannot be read now; it stays.
    """
    files, preparation = folder.files, folder.preparation

    def again(row: int) -> NDArray[np.uint8]:
        (image,) = image_pixels.decoded(files, np.array([row]), preparation, threads=1)
        return np.asarray(image, np.uint8)

    return open_kept(folder.place, len(files), preparation.whole, again)
