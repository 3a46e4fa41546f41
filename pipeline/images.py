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

from pipeline.errors import InputError
from pipeline.image_files import EXTENSIONS, MOST_BYTES
from pipeline.plain_files import content_of
from pipeline.recipe import AugmentConfig

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Labelled images of one set, all delivered at one square size.

    Attributes:
        labels: int64 [N], class indices.
        size: side S of the delivered images, in pixels.
        source: uint8 [M, 3, H, W] in memory (resized to S when asked for, unless H = W = S),
            uint8 [M, 3, S, S] in a file that is mapped for reading, or the M files to decode
            when asked for.
        rows: int64 [N], which of `source` are the set's, in its order; None for all of them.
        margin: pixels on every side that `source` has besides, in files and where it is mapped:
            it holds squares of S + 2 * margin.
    """

    labels: Tensor
    size: int
    source: Tensor | NDArray[np.uint8] | tuple[Path, ...]
    rows: Tensor | None = None
    margin: int = 0

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    def pixels(self, indices: Tensor) -> Tensor:
        """Images at `indices` (int64 [B]) as uint8 [B, 3, S, S].

        Raises:
            InputError: a file that is decoded on demand has become unreadable.
        """
        return middle(self.with_margin(indices), self.size)

    def with_margin(self, indices: Tensor) -> Tensor:
        """As `pixels`, with what lies around them: uint8 [B, 3, R, R], R = S + 2 * margin."""
        side = self.size + 2 * self.margin
        rows = indices if self.rows is None else self.rows[indices]
        if isinstance(self.source, Tensor):
            return resize(_copied(self.source.numpy(), rows), side)
        if isinstance(self.source, np.ndarray):
            return _copied(self.source, rows)
        files = [self.source[row] for row in rows.tolist()]
        if not files:
            return torch.empty((0, 3, side, side), dtype=torch.uint8)
        with ThreadPoolExecutor(_WORKERS) as pool:
            decoded = pool.map(lambda file: decode(_content(file), file, side), files)
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
        whole = torch.empty((len(self), 3, self.size, self.size), dtype=torch.uint8)
        chunk = max(1, _RESIZE_CHUNK_BYTES // (3 * self.size**2))
        for part in torch.split(torch.arange(len(self)), chunk):
            whole[part] = self.pixels(part)
        return replace(self, source=whole, rows=None)


def fits_in_memory(count: int, size: int) -> bool:
    """Whether `count` decoded images of `size` x `size` pixels may be kept in memory."""
    return count * 3 * size**2 <= MEMORY_LIMIT_BYTES


def middle(pixels: Tensor, size: int) -> Tensor:
    """The middle [..., size, size] of images [..., R, R]; R - size is even."""
    margin = (pixels.shape[-1] - size) // 2
    return pixels[..., margin : margin + size, margin : margin + size]


def margin_of(size: int, crop_pct: float) -> int:
    """Pixels around a square of `size` so that it is a share `crop_pct` of the whole side.

    224 and 0.875 give 16: an image's shorter side becomes 256.
    """
    return round(size * (1 / crop_pct - 1) / 2)


def resize(pixels: Tensor, size: int) -> Tensor:
    """uint8 [B, 3, H, W] to [B, 3, size, size], bilinear with antialias."""
    if pixels.shape[-2:] == (size, size) or len(pixels) == 0:
        return pixels.reshape(len(pixels), 3, size, size)
    return functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)


def decode(content: bytes, file: Path, size: int) -> NDArray[np.uint8]:
    """File content to uint8 [3, size, size]: upright RGB, shorter side resized, centre crop.

    Raises:
        InputError: `content` is not an image that can be decoded; `file` is named.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image, _turn(image):
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except _DECODE_ERRORS as error:
        raise InputError(_unreadable(file, error)) from error
    return np.asarray(_fit(rgb, size)).transpose(2, 0, 1)


def read_files(
    files: Sequence[Path], size: int, keep: Callable[[int, NDArray[np.uint8]], None] | None
) -> list[bytes]:
    """Read every file once, several at a time.

    Args:
        files: N image files.
        size: side S of the decoded images in pixels.
        keep: called from several threads with the index and the uint8 [3, S, S] of every image.
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
                pixels = decode(content, files[index], size)
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
    """uint8 [B, 3, S, S] to float32 of the same shape: (pixels / 255 - mean) / std.

    `mean` and `std` hold one value per channel, on the scale 0 to 1.
    """
    channels = (1, 3, 1, 1)
    shift = torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(channels)
    scale = torch.tensor(std, dtype=torch.float32, device=pixels.device).view(channels)
    return pixels.to(torch.float32).div_(255).sub_(shift).div_(scale)


def random_parts(pixels: Tensor, crop: tuple[float, float], size: int) -> Tensor:
    """A random part of every image, resized (Szegedy et al. 2014, section 6).

    It draws from torch's own generator.

    Args:
        pixels: uint8 [B, 3, R, R].
        crop: least and largest share of the area; sides are up to 4:3 or 3:4.
        size: side S of what is returned, in pixels.

    Returns:
        uint8 [B, 3, S, S].
    """
    # torchvision takes seconds to import.
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    return _each(pixels, v2.RandomResizedCrop(size, scale=crop, antialias=True))


def _each(pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The images changed one by one: a transform draws once for all that it is given."""
    return torch.stack([change(image) for image in pixels])


def by_policy(pixels: Tensor, policy: str) -> Tensor:
    """Every image changed by a policy that was found by search, or is drawn from all changes.

    autoaugment and autoaugment_cifar10: Cubuk et al. 2018, "AutoAugment: Learning Augmentation
    Policies from Data". randaugment: Cubuk et al. 2019, "RandAugment: Practical automated data
    augmentation with a reduced search space". trivialaugment: Müller and Hutter 2021,
    "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation". They draw from torch's
    own generator.

    Args:
        pixels: uint8 [B, 3, S, S].
        policy: key of AugmentConfig.policy.

    Returns:
        uint8 [B, 3, S, S].
    """
    # torchvision takes seconds to import.
    from torchvision.transforms import v2

    change = {
        "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
        "autoaugment_cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
    }[policy]()
    return _each(pixels, change)


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
    return augment_as(x, config, draw_changes(len(x), config, generator))


def draw_changes(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """What `augment_as` takes for so many images: float [5, count], uniform from 0 to 1."""
    draws = torch.full((5, count), 0.5)
    if config.flip:
        draws[0] = torch.rand(count, generator=generator)
    if not config.shift == config.rotate_deg == config.scale == 0:
        draws[1:] = torch.rand((4, count), generator=generator)
    return draws


def augment_as(x: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Every image x (float [B, 3, S, S]) changed as its draws (float [5, B]) say."""
    if config.flip:
        flipped = draws[0] < 0.5
        x = torch.where(flipped.to(x.device)[:, None, None, None], x.flip(-1), x)
    if config.shift == config.rotate_deg == config.scale == 0:
        return x
    draws = draws[1:] * 2 - 1
    if config.rotate_deg == config.scale == 0:
        return _shifted(x, (draws[2:] * config.shift * x.shape[-1]).round().to(torch.int64))
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


def _shifted(x: Tensor, pixels: Tensor) -> Tensor:
    """Every image x (float [B, 3, S, S]) taken from so many pixels (int64 [2, B]) right and down.

    Images of the test sets are not resampled, so those of the training are not either: at 32 x 32
    a shift by half a pixel blurs all that is small.
    """
    side = torch.arange(x.shape[-1], device=x.device)
    columns, rows = (pixels.to(x.device)[:, :, None] + side).clamp(0, x.shape[-1] - 1)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
