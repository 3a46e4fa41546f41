"""Golden photos: files of many sizes and kinds, with the very pixels that they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.tasks.images.pixels import decode, middle
from pipeline.tasks.images.preparation import Preparation, rgb_of

FOLDER, TABLE = "photos", "photos.csv"
_ORIENTATION, _TURNED = 0x0112, 6  # of EXIF: shown turned by 90 degrees clockwise


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A golden photo.

    Attributes:
        file: its name.
        size: height and width, from those that a photo is scaled to cover.
        save: writes colours, uint8 [H, W, 4], to a path.
        what: it shows, in words.
    """

    file: str
    size: Callable[[int, int], tuple[int, int]]
    save: Callable[[NDArray[np.uint8], Path], None]
    what: str


def _rgb(colours: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(colours[..., :3]).save(path)


def _turned(colours: NDArray[np.uint8], path: Path) -> None:
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED
    # Without subsampling, which decoders undo in several ways.
    Image.fromarray(colours[..., :3]).save(path, exif=exif, quality=95, subsampling=0)


def _grey(colours: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(colours[..., 0]).save(path)


def _grey_16(colours: NDArray[np.uint8], path: Path) -> None:
    levels = colours[..., 0].astype(np.uint16) << 8 | colours[..., 1]
    Image.fromarray(levels).save(path)


def _palette(colours: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(colours[..., :3]).quantize(16).save(path)


def _cmyk(colours: NDArray[np.uint8], path: Path) -> None:
    height, width, _ = colours.shape
    Image.frombytes("CMYK", (width, height), colours.tobytes()).save(path)


def _transparent(colours: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(colours, "RGBA").save(path)


def _transparent_palette(colours: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(colours[..., :3]).quantize(8).save(path, transparency=3)


def _small(height: int, width: int) -> tuple[int, int]:
    return height // 3 + 2, width // 2 + 1


KINDS = (
    Kind(
        file="portrait.png",
        size=lambda h, w: (h * 3 // 2 + 1, w + 5),
        save=_rgb,
        what="higher than wide",
    ),
    Kind(
        file="landscape.png",
        size=lambda h, w: (h + 3, w * 7 // 5),
        save=_rgb,
        what="wider than high",
    ),
    Kind(
        file="smaller.png",
        size=lambda h, w: (h // 2 + 1, w // 3 + 2),
        save=_rgb,
        what="smaller than what the network sees",
    ),
    Kind(
        file="larger.png",
        size=lambda h, w: (h * 5 // 3 + 3, w * 7 // 4 + 1),
        save=_rgb,
        what="larger along both sides",
    ),
    Kind(
        file="higher.png",
        size=lambda h, w: (h + 1, w),
        save=_rgb,
        what="one row more than is seen",
    ),
    Kind(
        file="wider.png",
        size=lambda h, w: (h, w + 1),
        save=_rgb,
        what="one column more than is seen",
    ),
    Kind(
        file="long.png",
        size=lambda h, w: (3, 30 * w // h + 31),
        save=_rgb,
        what="so long that the middle alone is scaled",
    ),
    Kind(file="turned.jpg", size=lambda h, w: (h * 2 // 3, w), save=_turned, what="turned by EXIF"),
    Kind(file="grey.png", size=_small, save=_grey, what="grey"),
    Kind(file="grey16.png", size=_small, save=_grey_16, what="grey of 16 bits"),
    Kind(file="palette.png", size=_small, save=_palette, what="of a palette"),
    Kind(file="cmyk.tif", size=_small, save=_cmyk, what="CMYK"),
    Kind(file="transparent.png", size=_small, save=_transparent, what="partly transparent"),
    Kind(
        file="holes.png",
        size=_small,
        save=_transparent_palette,
        what="of a palette with a transparent colour",
    ),
)
"""The golden photos of every bundle."""


def write(folder: Path, preparation: Preparation) -> None:
    """Write NAME.png or the like, NAME.ppm and NAME.rgb of every kind below `folder`, and TABLE.

    The same preparation gives the same files.
    """
    (folder / FOLDER).mkdir()
    lines = ["name,file,height,width,what"]
    whole = preparation.whole
    for number, kind in enumerate(KINDS):
        height, width = kind.size(whole.height, whole.width)
        path = folder / FOLDER / kind.file
        kind.save(_colours(height, width, number), path)
        with Image.open(path) as image:
            decoded = rgb_of(image, preparation.background)
        decoded.save(path.with_suffix(".ppm"))
        pixels = torch.tensor(decode(path.read_bytes(), path, preparation))
        seen = middle(pixels, preparation.shape).permute(1, 2, 0).contiguous()
        path.with_suffix(".rgb").write_bytes(seen.numpy().tobytes())
        lines.append(f"{path.stem},{path.name},{decoded.height},{decoded.width},{kind.what}")
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _colours(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Random patches of 1 to 7 pixels, uint8 [H, W, 4]: sharp edges that pack well."""
    draw = np.random.default_rng(seed)
    rows, columns = (
        np.repeat(np.arange(side), draw.integers(1, 8, side))[:side] for side in (height, width)
    )
    patches = draw.integers(0, 256, (height, width, 4), np.uint8)
    # A third opaque, a third clear, the rest between.
    kinds = draw.integers(0, 3, (height, width))
    patches[..., 3] = np.where(kinds == 0, 255, np.where(kinds == 1, 0, patches[..., 3]))
    return np.ascontiguousarray(patches[rows[:, None], columns[None, :]])
