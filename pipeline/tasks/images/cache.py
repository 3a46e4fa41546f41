"""Decoded images on disk: a later run neither reads nor decodes files that have not changed.

The images of one folder lie in `<cache>/<key>/`, where the key is a hash of everything that
decides them: `pixels.npy` (uint8 [N, C, H, W]), `digests.npy` (uint8 [N, 32], the SHA-256 of every
file) and the hashes of both, as of any result in the store. What does not match them is made again.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import __version__ as pillow
from PIL import features
from torch import Tensor

from pipeline.base import disk
from pipeline.base.checksums import damage
from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.passing import is_passing
from pipeline.base.safe_files import remove
from pipeline.base.store import LOCKS, MAKING, key_of, publish
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images import pixels as image_pixels
from pipeline.tasks.images import plugins
from pipeline.tasks.images import preparation as image_preparation
from pipeline.tasks.images.preparation import Preparation

_PIXELS, _DIGESTS = "pixels.npy", "digests.npy"
_RESERVE_BYTES = 2**30
"""Left free on the disk for the results of the stages."""


class _NoRoomError(Exception):
    """The disk has no space for decoded images; the message is for the user."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Image files, decoded where there is room for it.

    Attributes:
        source: as `Images.source`, for N files.
        digests: SHA-256 of each file's bytes; `DAMAGED` where it cannot be decoded.
        note: a line for the user where the disk has no space to keep the images.
    """

    source: Tensor | NDArray[np.uint8] | tuple[Path, ...]
    digests: list[bytes]
    note: str | None = None


def kept_or_decoded(
    root: Path,
    files: tuple[Path, ...],
    preparation: Preparation,
    cache: Path | None,
    *,
    in_memory: bool,
    skip: bool = False,
) -> Decoded:
    """Find image files decoded on disk, or decode them.

    Args:
        root: folder of the files; where it lies does not matter to the cache.
        files: N image files.
        preparation: of a decoded image.
        cache: directory that keeps decoded images; None keeps none.
        in_memory: without a cache, decode now; otherwise when asked for.
        skip: whether damaged files are passed over.

    Raises:
        InputError: files cannot be read, or the disk gives back other bytes than were written.
    """
    note = None
    if cache is not None:
        try:
            pixels, digests = _kept(root, files, preparation, cache, skip=skip)
            return Decoded(source=pixels, digests=digests)
        except _NoRoomError as error:
            note = str(error)
    if not in_memory:
        digests = image_pixels.read_files(files, preparation, None, skip=skip)
        return Decoded(source=files, digests=digests, note=note)
    whole = np.empty(preparation.whole.batch(len(files)), np.uint8)
    digests = image_pixels.read_files(files, preparation, whole.__setitem__, skip=skip)
    return Decoded(source=torch.from_numpy(whole), digests=digests, note=note)


def _kept(
    root: Path, files: Sequence[Path], preparation: Preparation, cache: Path, *, skip: bool
) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Pixels mapped for reading, and the digests; decoded first where they are not there.

    Raises:
        _NoRoomError: they do not fit on the disk. Nothing is left there.
    """
    try:
        place = place_of(root, files, preparation, cache)
    except OSError as error:
        image_pixels.read_files(files, preparation, None)  # raises, and names more than the first
        raise InputError(f"{root}: its files change while they are read; run again") from error
    shape = preparation.whole
    found = _open(place, len(files), shape)
    if found is None:
        cache.mkdir(parents=True, exist_ok=True)
        with held(cache / LOCKS / f"{place.name}.json", lambda owner: None):
            found = _open(place, len(files), shape)  # another process may just have made it
            if found is None:
                _make(place, root, files, preparation, skip=skip)
                found = _open(place, len(files), shape)
    if found is None:
        raise InputError(f"{place}: reads back otherwise than it was written; check the disk")
    if not skip:
        _refuse_damaged(files, found[1], preparation)
    return found


def _refuse_damaged(
    files: Sequence[Path], digests: Sequence[bytes], preparation: Preparation
) -> None:
    """Name the files that a run which skips damaged ones has skipped."""
    names = [
        file for file, digest in zip(files, digests, strict=True) if digest == image_pixels.DAMAGED
    ]
    if names:
        image_pixels.read_files(names, preparation, lambda row, pixels: None)
        raise InputError(f"{names[0]}: could not be decoded before, and can be now; run again")


def place_of(root: Path, files: Sequence[Path], preparation: Preparation, cache: Path) -> Path:
    """Where the images of a folder lie decoded, as its files are now, if they lie there.

    Raises:
        OSError: a file cannot be looked at.
    """
    return cache / key_of(_ingredients(root, files, preparation))


def _ingredients(root: Path, files: Sequence[Path], preparation: Preparation) -> dict[str, Any]:
    """Everything that decides the pixels and their order, as plain JSON.

    A file counts as unchanged by its size, times and inode: the time of change (ctime) also moves
    where a copy sets back the time of modification.
    """
    above = len(root.parts)
    listed = []
    for file in files:
        state, name = file.stat(), "/".join(file.parts[above:])
        listed.append([name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino])
    codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp")}
    return {
        "files": listed,
        "preparation": preparation.ingredients(),
        "code": _code(),
        "pillow": pillow,
        "codecs": codecs | plugins.versions(),
    }


@functools.cache
def _code() -> str:
    """Hash of the source of what decodes and writes."""
    modules = (image_pixels, image_preparation, plugins)
    sources = (*(Path(str(module.__file__)) for module in modules), Path(__file__))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()


def _make(
    place: Path, root: Path, files: Sequence[Path], preparation: Preparation, *, skip: bool
) -> None:
    """Decode the files into `place`, which appears whole or not at all."""
    needed = math.prod(preparation.whole.batch(len(files)))
    full = (
        f"no disk space left in {place.parent.resolve()} to keep the images of {root} decoded "
        f"({needed / 1e9:.1f} GB, with {_RESERVE_BYTES / 1e9:.1f} GB left free): every run decodes "
        "them again until there is"
    )
    for left in place.parent.glob(f"{MAKING}-{place.name}-*"):
        remove(left)  # of a process that was killed
    remove(place)  # damaged, where it is there at all
    if shutil.disk_usage(place.parent).free < needed + _RESERVE_BYTES:
        raise _NoRoomError(full)
    scratch = Path(tempfile.mkdtemp(prefix=f"{MAKING}-{place.name}-", dir=place.parent))
    try:
        digests = _write_pixels(scratch / _PIXELS, files, preparation, skip=skip)
        np.save(scratch / _DIGESTS, np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32))
        publish(scratch, place)
    except OSError as error:
        if disk.is_full(error, place.parent):
            raise _NoRoomError(full) from error
        raise
    finally:
        remove(scratch)


def _write_pixels(
    path: Path, files: Sequence[Path], preparation: Preparation, *, skip: bool
) -> list[bytes]:
    """Decode the files into one array file, and return the digest of each file's bytes.

    What is skipped is zero there.
    """
    shape = preparation.whole.batch(len(files))
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        start = file.tell()
        file.flush()
        os.truncate(file.fileno(), start + math.prod(shape))

        # Written, not mapped: a full disk is an error then, and not a crash.
        def write(index: int, pixels: NDArray[np.uint8]) -> None:
            content = pixels.tobytes()
            if os.pwrite(file.fileno(), content, start + index * len(content)) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        return image_pixels.read_files(files, preparation, write, skip=skip)


def _open(
    place: Path, count: int, shape: InputShape
) -> tuple[NDArray[np.uint8], list[bytes]] | None:
    """What lies at a place; None where there is nothing, or not what was written.

    Raises:
        OSError: it cannot be read now; it stays.
    """
    if damage(place) is not None:
        return None
    try:
        pixels = np.load(place / _PIXELS, mmap_mode="r")
        digests = np.load(place / _DIGESTS)
    except (OSError, ValueError) as error:
        if is_passing(error):
            raise
        return None
    if (pixels.shape, digests.shape) != (shape.batch(count), (count, 32)):
        return None
    return np.asarray(pixels), [digest.tobytes() for digest in digests]
