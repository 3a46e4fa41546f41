"""Decoded images in one file, each compared with its checksum before it is used."""

from __future__ import annotations

import io
import math
import os
import warnings
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.checksums import damage
from pipeline.base.errors import InputError
from pipeline.base.passing import is_passing
from pipeline.base.safe_files import open_file
from pipeline.recipe.input_shape import InputShape

PIXELS, DIGESTS, SUMS = "pixels.npy", "digests.npy", "sums.npy"
"""Names of the files: the images, the SHA-256 of what each was made of, and its CRC-32."""


class KeptImages:
    """N decoded images of one shape in a file.

    Nothing of the file is read before it is asked for. An image is compared with its checksum when
    it is read for the first time; one that differs is decoded again and put back.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        shape: tuple[int, int, int],
        sums: NDArray[np.uint32],
        again: Callable[[int], NDArray[np.uint8]],
    ) -> None:
        """Open the file.

        Args:
            path: of it.
            start: where the first image begins, in bytes.
            shape: of every image, which are uint8 and lie one after the other.
            sums: CRC-32 of every image, [N].
            again: decodes the image of a row anew, [C, H, W].

        Raises:
            OSError: it cannot be opened.
        """
        self.path, self.shape, self._start, self._again = path, shape, start, again
        self._sums, self._checked = sums, np.zeros(len(sums), np.bool_)
        # Read, not mapped: a disk that fails is an error then, and not a crash.
        self._number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._number)

    def __len__(self) -> int:
        """N."""
        return len(self._sums)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Copies of the images at rows [B]: uint8 [B, C, H, W].

        Raises:
            InputError: one is not as it was written, and neither is the file that it was made of.
            OSError: the disk cannot read it.
        """
        images = np.empty((len(rows), *self.shape), np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            read = os.preadv(self._number, [image], self._start + row * image.nbytes)
            if read < image.nbytes or not (self._checked[row] or self._is_right(row, image)):
                image[...] = self._mended(row)
            self._checked[row] = True
        return images

    def _is_right(self, row: int, image: NDArray[np.uint8]) -> bool:
        return zlib.crc32(image.data) == int(self._sums[row])

    def _mended(self, row: int) -> NDArray[np.uint8]:
        """An image decoded again and, where the disk takes it, put back."""
        image = np.ascontiguousarray(self._again(row))
        if not self._is_right(row, image):
            raise InputError(
                f"{self.path}: image {row + 1} is not as it was written, and the file that it was "
                "made of has changed since; run again"
            )
        warnings.warn(
            f"{self.path}: image {row + 1} was not as it was written, and was decoded again; check "
            "the disk",
            stacklevel=2,
        )
        with suppress(OSError):
            number = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(number, image.tobytes(), self._start + row * image.nbytes)
            finally:
                os.close(number)
        return image


def header_of(count: int, shape: InputShape) -> bytes:
    """What stands before the pixels in their file."""
    header = io.BytesIO()
    content = {"descr": "|u1", "fortran_order": False, "shape": shape.batch(count)}
    np.lib.format.write_array_header_1_0(header, content)  # type: ignore[no-untyped-call]
    return header.getvalue()


def open_kept(
    place: Path, count: int, shape: InputShape, again: Callable[[int], NDArray[np.uint8]]
) -> tuple[KeptImages, NDArray[np.uint8]] | None:
    """Decoded images and the digests of their files; None where they are not as written.

    Raises:
        OSError: they cannot be read now; they stay.
    """
    if damage(place, more_allowed=True) is not None:  # the pixels are not listed
        return None
    path, header = place / PIXELS, header_of(count, shape)
    try:
        digests, sums = np.load(place / DIGESTS), np.load(place / SUMS)
        with open_file(path) as file:
            begins, size = file.read(len(header)), os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:
        if is_passing(error):
            raise
        return None
    if (digests.shape, sums.shape) != ((count, 32), (count,)):
        return None
    if begins != header or size != len(header) + math.prod(shape.batch(count)):
        return None
    _, *sides = shape.batch(1)
    return KeptImages(path, len(header), (sides[0], sides[1], sides[2]), sums, again), digests
