"""Image files and uint8 tensors: finding, decoding, resizing, normalisation, augmentation."""

from __future__ import annotations

import hashlib
import io
import math
import os
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
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from pipeline.base.errors import InputError
from pipeline.base.safe_files import content_of
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.files import MOST_BYTES

MEMORY_LIMIT_BYTES = 2 * 2**30
"""Decoded pixels of one dataset up to this size are kept in memory."""

# PIL reports a damaged file in all of these ways, depending on the format and the place.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, StructError),
    Image.DecompressionBombError,
)
# Only what EXTENSIONS names: Pillow knows formats besides that are programs, such as PostScript.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_LARGE_PIXELS = 25_000_000
_ONE_AT_A_TIME = Lock()
_WORKERS = min(8, os.cpu_count() or 1)
_RESIZE_CHUNK_BYTES = 2**25
_LUMA = (19595, 38470, 7471)


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one set, all delivered in one shape.

    Attributes:
        labels: int64 [N], class indices.
        shape: C, H and W of a delivered image.
        source: uint8 [M, 3, R, S] in memory (resized when asked for), the delivered images with
            their margin in memory or in a file that is mapped for reading, or the M files to decode
            when asked for.
        rows: int64 [N], which of `source` are the set's, in its order; None for all of them.
        margin: rows above and below, and columns left and right, that `source` has besides, in
            files and where it is mapped.
    """

    labels: Tensor
    shape: InputShape
    source: Tensor | NDArray[np.uint8] | tuple[Path, ...]
    rows: Tensor | None = None
    margin: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    def pixels(self, indices: Tensor) -> Tensor:
        """Images at `indices` (int64 [B]) as uint8 [B, C, H, W].

        Raises:
            InputError: a file that is decoded on demand has become unreadable.
        """
        return middle(self.with_margin(indices), self.shape)

    def with_margin(self, indices: Tensor) -> Tensor:
        """As `pixels`, with what lies around them: uint8, too."""
        whole = self.shape.within(self.margin)
        rows = indices if self.rows is None else self.rows[indices]
        if isinstance(self.source, Tensor):
            return resize(_copied(self.source.numpy(), rows), whole)
        if isinstance(self.source, np.ndarray):
            return _copied(self.source, rows)
        files = [self.source[row] for row in rows.tolist()]
        if not files:
            return torch.empty(whole.batch(0), dtype=torch.uint8)
        with ThreadPoolExecutor(_WORKERS) as pool:
            decoded = pool.map(lambda file: decode(_content(file), file, whole), files)
            return torch.from_numpy(np.stack(list(decoded)))

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


def fits_in_memory(count: int, shape: InputShape) -> bool:
    """Whether `count` decoded images may be kept in memory."""
    return math.prod(shape.batch(count)) <= MEMORY_LIMIT_BYTES


def middle(pixels: Tensor, shape: InputShape) -> Tensor:
    """The middle [..., H, W] of larger images."""
    top, left = (
        (whole - side) // 2
        for whole, side in zip(pixels.shape[-2:], (shape.height, shape.width), strict=True)
    )
    return pixels[..., top : top + shape.height, left : left + shape.width]


def margin_of(shape: InputShape, crop_pct: float) -> tuple[int, int]:
    """Rows and columns around an image so that its sides are a share `crop_pct` of the whole.

    224 x 224 and 0.875 give 16 and 16: an image's shorter side becomes 256.
    """
    share = (1 / crop_pct - 1) / 2
    return round(shape.height * share), round(shape.width * share)


def covering(height: int, width: int, shape: InputShape) -> tuple[int, int]:
    """Height and width of an image, scaled to the least that covers `shape`."""
    if width * shape.height <= height * shape.width:
        return height * shape.width // width, shape.width
    return shape.height, width * shape.height // height


def resize(pixels: Tensor, shape: InputShape) -> Tensor:
    """uint8 [B, 3, R, S] to [B, C, H, W]: bilinear with antialias, centre crop, then grey."""
    if len(pixels) == 0:
        return pixels.new_empty(shape.batch(0))
    size = covering(pixels.shape[-2], pixels.shape[-1], shape)
    if pixels.shape[-2:] != size:
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    pixels = middle(pixels, shape)
    return pixels if pixels.shape[1] == shape.channels else grey(pixels)


def grey(pixels: Tensor) -> Tensor:
    """Red, green and blue, uint8 [..., 3, H, W], to grey [..., 1, H, W], as Pillow's `L` has it.

    By the luma of ITU-R 601 in 16 bits.
    """
    weights = torch.tensor(_LUMA, dtype=torch.int32)[:, None, None]
    summed = (pixels.to(torch.int32) * weights).sum(-3, keepdim=True)
    return ((summed + 2**15) >> 16).to(torch.uint8)


def decode(content: bytes, file: Path, shape: InputShape) -> NDArray[np.uint8]:
    """File content to uint8 [C, H, W]: upright RGB, resized to cover, centre crop, then grey.

    Raises:
        InputError: `content` is not an image that can be decoded; `file` is named.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image, _turn(image):
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except _DECODE_ERRORS as error:
        raise InputError(_unreadable(file, error)) from error
    fitted = _fit(rgb, shape)
    if shape.channels == 1:
        return np.asarray(fitted.convert("L"))[None]
    return np.asarray(fitted).transpose(2, 0, 1)


def read_files(
    files: Sequence[Path], shape: InputShape, keep: Callable[[int, NDArray[np.uint8]], None] | None
) -> list[bytes]:
    """Read every file once, several at a time.

    Args:
        files: N image files.
        shape: C, H and W of a decoded image.
        keep: called from several threads with the index and the uint8 [C, H, W] of every image.
            Without it nothing is decoded, only the file headers are checked.

    Returns:
        The SHA-256 digest of each file's bytes.

    Raises:
        InputError: files cannot be read; the first ten are named.
    """

    def read(index: int) -> tuple[bytes, str | None]:
        try:
            content = _content(files[index])
            if keep is None:
                Image.open(io.BytesIO(content), formats=_FORMATS).close()
            else:
                pixels = decode(content, files[index], shape)
        except InputError as error:
            return b"", str(error)
        except _DECODE_ERRORS as error:
            return b"", _unreadable(files[index], error)
        if keep is not None:
            keep(index, pixels)
        return hashlib.sha256(content).digest(), None

    with ThreadPoolExecutor(_WORKERS) as pool:
        results = list(pool.map(read, range(len(files))))
    problems = [problem for _, problem in results if problem is not None]
    if len(problems) > 10:
        problems[10:] = [f"... and {len(problems) - 10} more unreadable images"]
    if problems:
        raise InputError("\n".join(problems))
    return [digest for digest, _ in results]


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


def _content(file: Path) -> bytes:
    try:
        return content_of(file, MOST_BYTES)
    except OSError as error:
        raise InputError(_unreadable(file, error)) from error


def _turn(image: Image.Image) -> AbstractContextManager[object]:
    """Large images are decoded one after the other: each takes gigabytes."""
    large = image.width * image.height > _LARGE_PIXELS
    return _ONE_AT_A_TIME if large else nullcontext()


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a decoded image; PIL's own conversion of 16-bit grey clips at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _fit(image: Image.Image, shape: InputShape) -> Image.Image:
    """Resize to the least that covers `shape` and cut the centre, in one step.

    The cut is made in source coordinates, so that a very long image is never enlarged whole.
    Its place is that of torchvision's Resize and CenterCrop.
    """
    box = []
    wanted = (shape.width, shape.height)
    height, width = covering(image.height, image.width, shape)
    for side, resized, size in zip(image.size, (width, height), wanted, strict=True):
        start = round((resized - size) / 2)
        box += [(start * side / resized, (start + size) * side / resized)]
    (left, right), (top, bottom) = box
    corners = (left, top, min(right, image.width), min(bottom, image.height))
    return image.resize(wanted, Image.Resampling.BILINEAR, box=corners)


def _unreadable(file: Path, error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(text.split()) or type(error).__name__
    if "cannot identify image file" in reason:
        reason = "not an image"
    return f"cannot read image {file}: {reason}; replace the file or remove it"
