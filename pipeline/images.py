"""Image files and uint8 tensors: finding, decoding, resizing, normalisation, augmentation."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from struct import error as StructError

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.image_files import EXTENSIONS
from pipeline.recipe import AugmentConfig

MEMORY_LIMIT_BYTES = 2 * 2**30
"""Decoded pixels of one dataset up to this size are kept in memory."""

# PIL reports a damaged file in all of these ways, depending on the format and the place.
_DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, StructError),
    Image.DecompressionBombError,
)
_WORKERS = min(8, os.cpu_count() or 1)
_RESIZE_CHUNK = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one set, all delivered at one square size.

    Attributes:
        labels: int64 [N], class indices.
        size: side S of the delivered images, in pixels.
        source: uint8 [N, 3, H, W] in memory (resized to S when asked for, unless H = W = S),
            or the N files to decode when asked for.
    """

    labels: Tensor
    size: int
    source: Tensor | tuple[Path, ...]

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    def pixels(self, indices: Tensor) -> Tensor:
        """Images at `indices` (int64 [B]) as uint8 [B, 3, S, S].

        Raises:
            InputError: a file that is decoded on demand has become unreadable.
        """
        if isinstance(self.source, Tensor):
            return resize(self.source[indices], self.size)
        files = [self.source[index] for index in indices.tolist()]
        if not files:
            return torch.empty((0, 3, self.size, self.size), dtype=torch.uint8)
        with ThreadPoolExecutor(_WORKERS) as pool:
            decoded = pool.map(lambda file: decode(_content(file), file, self.size), files)
            return torch.from_numpy(np.stack(list(decoded)))

    def take(self, indices: Tensor) -> Images:
        """The images at `indices` (int64 [B]), in that order, as a set of its own."""
        if isinstance(self.source, Tensor):
            return replace(self, labels=self.labels[indices], source=self.source[indices])
        files = tuple(self.source[index] for index in indices.tolist())
        return replace(self, labels=self.labels[indices], source=files)

    def resized(self) -> Images:
        """The same images with the resize done once, where the result fits in memory."""
        if not isinstance(self.source, Tensor) or not fits_in_memory(len(self), self.size):
            return self
        # In chunks: the resize holds intermediate copies of what it is given.
        parts = [resize(part, self.size) for part in torch.split(self.source, _RESIZE_CHUNK)]
        return replace(self, source=torch.cat(parts))


def fits_in_memory(count: int, size: int) -> bool:
    """Whether `count` decoded images of `size` x `size` pixels may be kept in memory."""
    return count * 3 * size**2 <= MEMORY_LIMIT_BYTES


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, H, W] to [B, 3, size, size], bilinear with antialias."""
    if pixels.shape[-2:] == (size, size) or len(pixels) == 0:
        return pixels.reshape(len(pixels), 3, size, size)
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


def decode(
    content: bytes, file: Path, size: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """File content to uint8 [3, size, size]: upright RGB, shorter side resized, centre crop.

    Raises:
        InputError: `content` is not an image that can be decoded; `file` is named.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except _DECODE_ERRORS as error:
        raise InputError(_unreadable(file, error)) from error
    return np.asarray(_fit(rgb, size)).transpose(2, 0, 1)


def read_files(
    files: Sequence[Path], size: int, *, keep_pixels: bool
) -> tuple[Tensor | None, list[bytes]]:
    """Read every file once.

    Args:
        files: N image files.
        size: side of the decoded images in pixels.
        keep_pixels: decode everything now. Otherwise only the file headers are checked.

    Returns:
        uint8 [N, 3, size, size], or None without `keep_pixels`; the SHA-256 digest of each
        file's bytes.

    Raises:
        InputError: files cannot be read; the first ten are named.
    """
    kept = np.empty((len(files), 3, size, size), np.uint8) if keep_pixels else None

    def read(index: int) -> tuple[bytes, str | None]:
        try:
            content = _content(files[index])
            if kept is not None:
                kept[index] = decode(content, files[index], size)
            else:
                Image.open(io.BytesIO(content)).close()
        except InputError as error:
            return b"", str(error)
        except _DECODE_ERRORS as error:
            return b"", _unreadable(files[index], error)
        return hashlib.sha256(content).digest(), None

    with ThreadPoolExecutor(_WORKERS) as pool:
        results = list(pool.map(read, range(len(files))))
    problems = [problem for _, problem in results if problem is not None]
    if len(problems) > 10:
        problems[10:] = [f"... and {len(problems) - 10} more unreadable images"]
    if problems:
        raise InputError("\n".join(problems))
    return None if kept is None else torch.from_numpy(kept), [digest for digest, _ in results]


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B, 3, S, S] to float32 of the same shape: (pixels / 255 - mean) / std.

    `mean` and `std` hold one value per channel, on the scale 0 to 1.
    """
    channels = (1, 3, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(channels)
    scale = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(channels)
    return pixels.to(torch.float32).div_(255).sub_(shift).div_(scale)


def augment(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Random flip, rotation, scale and shift of every image of a batch.

    With all settings off `x` itself comes back and nothing is drawn. What moves in from
    outside repeats the border pixels.

    Args:
        x: float [B, 3, S, S].
        config: the widest change on either side; each image draws its own, uniformly.
        generator: on the CPU, so that every device sees the same draws.

    Returns:
        float [B, 3, S, S].
    """
    if config.flip:
        flipped = torch.rand(len(x), generator=generator) < 0.5
        x = torch.where(flipped.to(x.device)[:, None, None, None], x.flip(-1), x)
    if config.shift == config.rotate_deg == config.scale == 0:
        return x
    draws = torch.rand((4, len(x)), generator=generator) * 2 - 1
    angle = draws[0] * math.radians(config.rotate_deg)
    # The grid runs from output to input: enlarging by s samples a region 1 / s as wide.
    zoom = 1 / (1 + draws[1] * config.scale)
    # The grid's unit is half a side.
    shift_x, shift_y = draws[2:] * config.shift * 2
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = (torch.stack((cos, -sin, shift_x), dim=1), torch.stack((sin, cos, shift_y), dim=1))
    theta = torch.stack(rows, dim=1).to(x.device, x.dtype)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def scan_folder(key: str, root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Class folders of `root` with their images, both sorted, and what is wrong with them.

    As in torchvision's ImageFolder, a class folder may hold further folders (links to folders
    inside it are not followed), and files without an image's suffix are passed over. Hidden
    folders are no classes. `key` opens every problem line.
    """
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        return {}, [f"{key}: {root} {state}; give a folder that holds one folder per class"]
    names = sorted(
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files = {name: _images_below(root / name) for name in names}
    problems = []
    if not names:
        problems = [f"{key}: {root} is empty of class folders; put images in {root}/<class>/"]
    if len(names) == 1:
        problems = [f"{key}: {root} holds one class only, '{names[0]}'; at least 2 are needed"]
    problems += [
        f"{key}: class '{name}' has no images in {root / name}; "
        f"add some ({' '.join(EXTENSIONS)}) or remove the folder"
        for name in names
        if not files[name]
    ]
    return files, problems


def class_differences(key: str, names: set[str], expected: set[str]) -> list[str]:
    """What is wrong with the class folders `names`, where train has `expected`; [] if nothing."""
    if not names or names == expected:
        return []
    parts = [
        f"{label} {', '.join(repr(name) for name in sorted(group))}"
        for label, group in (("missing", expected - names), ("not in train", names - expected))
        if group
    ]
    return [f"{key}: class folders differ from data.train's: {'; '.join(parts)}; make them equal"]


def _images_below(folder: Path) -> list[Path]:
    walked = os.walk(folder)
    files = [Path(place, name) for place, _, names in walked for name in names]
    return sorted(
        file
        for file in files
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".")
    )


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(_unreadable(file, error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a decoded image; PIL's own conversion of 16-bit grey clips at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` and cut the centre, in one step.

    The cut is made in source coordinates, so that a very long image is never enlarged whole.
    Its place is that of torchvision's Resize and CenterCrop.
    """
    box = []
    short = min(image.size)
    for side in image.size:
        resized = side * size // short
        start = round((resized - size) / 2)
        box += [(start * side / resized, (start + size) * side / resized)]
    (left, right), (top, bottom) = box
    corners = (left, top, min(right, image.width), min(bottom, image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=corners)


def _unreadable(file: Path, error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(text.split()) or type(error).__name__
    if "cannot identify image file" in reason:
        reason = "not an image"
    return f"cannot read image {file}: {reason}; replace the file or remove it"
