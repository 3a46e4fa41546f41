"""Image files and uint8 tensors: finding, decoding, resizing, normalisation, augmentation."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from struct import error as StructError
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from pipeline.base.errors import InputError, listed
from pipeline.base.machine import cores
from pipeline.recipe.data import WHITE, Aspect, Colour, Interpolation
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.kept import KeptImages
from pipeline.tasks.images.plugins import plugged_in
from pipeline.tasks.images.preparation import MaskValues, Preparation, fit, prepared
from pipeline.tasks.images.stored import Stored, unreadable

MEMORY_LIMIT_BYTES = 2 * 2**30
"""Decoded pixels of one dataset up to this size are kept in memory."""

# PIL reports a damaged file in all of these ways, depending on the format and the place.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, StructError),
    Image.DecompressionBombError,
)
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *plugged_in())
"""Only what is named: Pillow knows formats besides that are programs, such as PostScript."""
_MASK_MODES = ("1", "L", "P")
DAMAGED = bytes(32)
"""In the place of a digest, of a file that cannot be decoded."""
_LARGE_PIXELS = 25_000_000
_ONE_AT_A_TIME = Lock()
WORKERS = min(32, cores())
"""Threads that read and decode: Pillow leaves the interpreter free for most of the time."""
_READERS = min(32, 4 * cores())
"""Threads that only read and hash: they wait for the disk most of the time."""
_MOST_AT_A_TIME = 256
_RESIZE_CHUNK_BYTES = 2**25
_LUMA = (19595, 38470, 7471)


class DamagedError(InputError):
    """An image file was read, and its bytes cannot be decoded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one set, all delivered in one shape.

    Attributes:
        labels: int64 [N], class indices; or uint8 [N, labels], 1 where an image has a label; or
            float32 [N, M, 6], its objects (`pipeline.tasks.images.boxes`); or uint8 [N, H, W], the
            class of every pixel of an image without its margin.
        shape: C, H and W of a delivered image.
        source: uint8 [M, 3, R, S] in memory (resized when asked for), the delivered images with
            their margin in memory or kept in a file, or the M files to decode when asked for.
        rows: int64 [N], which of `source` are the set's, in its order; None for all of them.
        margin: rows above and below, and columns left and right, that `source` has besides, in
            files and where it is kept.
        interpolation: of files that are decoded when asked for, and of the parts that training
            takes.
        background: of files that are decoded when asked for.
        aspect: likewise.
        workers: processes that decode files ahead, where they come batch by batch; None for as many
            as there are cores.
    """

    labels: Tensor
    shape: InputShape
    source: Tensor | KeptImages | Stored
    rows: Tensor | None = None
    margin: tuple[int, int] = (0, 0)
    interpolation: Interpolation = "bilinear"
    background: Colour = WHITE
    aspect: Aspect = "crop"
    workers: int | None = None

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    @property
    def preparation(self) -> Preparation:
        """How a photo becomes one of them."""
        return Preparation(
            shape=self.shape,
            margin=self.margin,
            interpolation=self.interpolation,
            background=self.background,
            aspect=self.aspect,
        )

    def pixels(self, indices: Tensor) -> Tensor:
        """Images at `indices` (int64 [B]) as uint8 [B, C, H, W].

        Raises:
            InputError: a file that is decoded on demand has become unreadable.
        """
        return middle(self.with_margin(indices), self.shape)

    def with_margin(self, indices: Tensor) -> Tensor:
        """As `pixels`, with what lies around them: uint8, too."""
        preparation = self.preparation
        rows = indices if self.rows is None else self.rows[indices]
        if isinstance(self.source, Tensor):
            return scaled(_copied(self.source.numpy(), rows), preparation)
        if isinstance(self.source, KeptImages):
            return torch.from_numpy(self.source.take(rows.numpy()))
        threads = None if get_worker_info() is None else 1  # there is a process for every core
        return torch.from_numpy(decoded(self.source, rows.numpy(), preparation, threads))

    def take(self, indices: Tensor) -> Images:
        """The images at `indices` (int64 [B]), in that order, as a set of its own.

        The pixels stay where they are.
        """
        rows = indices if self.rows is None else self.rows[indices]
        return replace(self, labels=self.labels[indices], rows=rows)

    def resized(self) -> Images:
        """The same images in memory, with the resize done once."""
        # In chunks, each put where it belongs: the resize holds copies of what it is given.
        whole = torch.empty(self.shape.batch(len(self)), dtype=torch.uint8)
        chunk = max(1, _RESIZE_CHUNK_BYTES // (3 * self.shape.area))
        for part in torch.split(torch.arange(len(self)), chunk):
            whole[part] = self.pixels(part)
        return replace(self, source=whole, rows=None)


def is_mask(labels: Tensor) -> bool:
    """Whether labels are the classes of pixels."""
    return labels.dim() == 3 and labels.dtype == torch.uint8


def fits_in_memory(count: int, shape: InputShape) -> bool:
    """Whether `count` decoded images may be kept in memory."""
    return math.prod(shape.batch(count)) <= MEMORY_LIMIT_BYTES


def middle(pixels: Tensor, shape: InputShape) -> Tensor:
    """The middle [..., H, W] of images that have a margin on both sides."""
    top, left = (
        (whole - side) // 2
        for whole, side in zip(pixels.shape[-2:], (shape.height, shape.width), strict=True)
    )
    return pixels[..., top : top + shape.height, left : left + shape.width]


def scaled(pixels: Tensor, preparation: Preparation) -> Tensor:
    """Images uint8 [B, 3, R, S], prepared as photos are: uint8 [B, C, H, W] with the margin."""
    whole = preparation.whole
    if pixels.shape[-2:] != (whole.height, whole.width):
        fitted = torch.empty((len(pixels), 3, whole.height, whole.width), dtype=torch.uint8)
        for row, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
            photo = fit(Image.fromarray(np.ascontiguousarray(image)), preparation)
            fitted[row] = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
        pixels = fitted
    return pixels if pixels.shape[1] == whole.channels else grey(pixels)


def grey(pixels: Tensor) -> Tensor:
    """Red, green and blue, uint8 [..., 3, H, W], to grey [..., 1, H, W], as Pillow's `L` has it.

    By the luma of ITU-R 601 in 16 bits.
    """
    weights = torch.tensor(_LUMA, dtype=torch.int32)[:, None, None]
    summed = (pixels.to(torch.int32) * weights).sum(-3, keepdim=True)
    return ((summed + 2**15) >> 16).to(torch.uint8)


def decode(content: bytes, file: Path, preparation: Preparation) -> NDArray[np.uint8]:
    """File content to uint8 [C, H, W] with the margin, as `prepared` makes it.

    Raises:
        DamagedError: `content` is not an image that can be decoded; `file` is named.
        InputError: it is to be a mask, and is none.
    """
    if preparation.mask is not None:
        return decode_mask(content, file, preparation, preparation.mask)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image, _turn(image):
            return prepared(image, preparation)
    except _DECODE_ERRORS as error:
        raise DamagedError(unreadable(file, error)) from error


def decode_mask(
    content: bytes, file: Path, preparation: Preparation, values: MaskValues
) -> NDArray[np.uint8]:
    """The content of a mask's file to uint8 [1, H, W]: the class of every pixel, or `VOID`.

    Raises:
        DamagedError: `content` is no PNG that can be decoded; `file` is named.
        InputError: it has colours, or a value that is no class.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
            if image.mode not in _MASK_MODES:
                raise InputError(
                    f"mask {file}: its pixels are of mode {image.mode}; it must be a PNG with a "
                    "palette or in grey of 8 bits, whose pixel values are classes"
                )
            fitted = np.array(fit(image, preparation)).astype(np.uint8)
            found = np.unique(np.asarray(image))
    except _DECODE_ERRORS as error:
        raise DamagedError(unreadable(file, error)) from error
    table = values.table()
    # Of all pixels, so that what a crop shows does not decide whether a mask is good.
    if odd := [int(value) for value in found if table[value] < 0]:
        raise InputError(
            f"mask {file}: has class {listed(map(str, odd))}, and the classes are 0 to "
            f"{values.listed - 1}; name it in data.classes, or set data.void"
        )
    return table[fitted].astype(np.uint8)[None]


def decoded(
    files: Stored, rows: NDArray[np.int64], preparation: Preparation, threads: int | None = None
) -> NDArray[np.uint8]:
    """The images of some files, as `prepared` makes them: uint8 [B, C, H, W].

    Args:
        files: image files.
        rows: which of them, [B].
        preparation: of a decoded image.
        threads: that decode; as many as there are cores where left out.

    Raises:
        InputError: one cannot be read, or not be decoded.
    """
    images = np.empty(preparation.whole.batch(len(rows)), np.uint8)

    def put(place: int) -> None:
        row = int(rows[place])
        images[place] = decode(files.content(row), files.path(row), preparation)

    with ThreadPoolExecutor(threads or WORKERS) as pool:
        for _ in pool.map(put, range(len(rows))):
            pass
    return images


def read_files(
    files: Stored,
    rows: NDArray[np.int64],
    preparation: Preparation,
    keep: Callable[[int, NDArray[np.uint8]], None] | None,
    *,
    skip: bool = False,
) -> NDArray[np.uint8]:
    """Read files once each, on all cores.

    Args:
        files: image files.
        rows: which of them, [B].
        preparation: of a decoded image.
        keep: called from several threads with the row and the uint8 [C, H, W] of every image.
            Without it nothing is decoded, only the file headers are checked, unless `skip`.
        skip: whether damaged files are passed over.

    Returns:
        The SHA-256 of each file's bytes, `DAMAGED` of one that was passed over: uint8 [B, 32].

    Raises:
        InputError: files cannot be read; the first ten are named.
    """
    digests = np.zeros((len(rows), len(DAMAGED)), np.uint8)
    problems: list[tuple[int, str]] = []

    def read(place: int) -> None:
        row = int(rows[place])
        try:
            content = files.content(row)
            if keep is None and not skip:
                _check_header(content, files.path(row))
            else:
                pixels = decode(content, files.path(row), preparation)
        except InputError as error:
            if not (skip and isinstance(error, DamagedError)):
                problems.append((place, str(error)))
            return
        if keep is not None:
            keep(row, pixels)
        digests[place] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)

    def read_all(places: range) -> None:
        for place in places:
            read(place)

    # Some at a time: what a thread is to do takes a kilobyte until it is done.
    size = max(1, min(_MOST_AT_A_TIME, len(rows) // (64 * WORKERS)))
    parts = [range(begin, min(begin + size, len(rows))) for begin in range(0, len(rows), size)]
    threads = WORKERS if keep is not None or skip else _READERS
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read_all, parts):
            pass
    told = [problem for _, problem in sorted(problems)]
    if len(told) > 10:
        told[10:] = [f"... and {len(told) - 10} more unreadable images"]
    if told:
        raise InputError("\n".join(told))
    return digests


def _check_header(content: bytes, file: Path) -> None:
    try:
        Image.open(io.BytesIO(content), formats=FORMATS).close()
    except _DECODE_ERRORS as error:
        raise DamagedError(unreadable(file, error)) from error


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, C, H, W] to float32 of the same shape: (pixels / 255 - mean) / std.

    `mean` and `std` hold one value per channel, on the scale 0 to 1.
    """
    channels = (1, -1, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(channels)
    scale = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(channels)
    return pixels.to(torch.float32).div_(255).sub_(shift).div_(scale)


def _copied(pixels: NDArray[np.uint8], rows: Tensor) -> Tensor:
    # Ten times as fast as torch's own indexing, of 64 images of 224 x 224 on one core.
    return torch.from_numpy(pixels[rows.numpy()])


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    """Large images are decoded one after the other: each takes gigabytes."""
    large = image.width * image.height > _LARGE_PIXELS
    return _ONE_AT_A_TIME if large else nullcontext()
