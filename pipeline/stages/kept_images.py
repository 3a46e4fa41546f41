"""A few images, kept beside what was made of them: commands then need no photos.

`fold` keeps calibration images for `debug`, `judge_fold` test images for `debug --sensitivity`, and
a run's own folder those of the bundle and the one that is timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from pipeline.base.errors import following, reading
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.pixels import Images

KEPT_IMAGES = "images.safetensors"
"""Name of the file, in the folder of a run and in those of stages."""
CALIBRATION, TEST, GOLDEN, FIRST = "calibration", "test", "golden", "first"
"""Sets of images in such files: for `debug`, for its sensitivity, for a bundle, for timing."""
MOST = 32
"""Images of `CALIBRATION` and of `TEST`: as many as `debug` looks at where nothing else is said."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptSet:
    """Some images of a set.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: of each, [N] or [N, ...].
        rows: int64 [N], which of the set they are.
        total: number of images of the set.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    total: int

    def images(self, wanted: Tensor, shape: InputShape) -> Images | None:
        """The images at rows (int64 [B]) of the set; None where one of them was not kept."""
        places = {row: place for place, row in enumerate(self.rows.tolist())}
        found = [places.get(row) for row in wanted.tolist()]
        chosen = torch.tensor([place for place in found if place is not None], dtype=torch.int64)
        if len(chosen) < len(wanted):
            return None
        return Images(labels=self.labels[chosen], shape=shape, source=self.pixels[chosen])


def first_rows(total: int, count: int) -> Tensor:
    """The first `count` of `total` images, or all: int64."""
    return torch.arange(min(count, total))


def spread_rows(total: int, count: int) -> Tensor:
    """As `first_rows`, but from all over the set, which may lie class by class."""
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


def kept(images: Images, rows: Tensor) -> KeptSet:
    """The images of a set at `rows`, int64 [N]."""
    return KeptSet(
        pixels=images.pixels(rows), labels=images.labels[rows], rows=rows, total=len(images)
    )


def write(path: Path, sets: Mapping[str, KeptSet]) -> None:
    """Write sets as safetensors: NAME/pixels, /labels, /rows and /total."""
    tensors: dict[str, Tensor] = {}
    for name, found in sets.items():
        tensors |= {
            f"{name}/pixels": found.pixels.contiguous(),
            f"{name}/labels": found.labels.contiguous(),
            f"{name}/rows": found.rows.contiguous(),
            f"{name}/total": torch.tensor(found.total),
        }
    safetensors.torch.save_file(tensors, path)


def read(path: Path, name: str, shape: InputShape) -> KeptSet | None:
    """What `write` kept of a set; None where there is no such file, as in older runs.

    Raises:
        InputError: it cannot be read, or holds other things than images of `shape`.
    """
    if not path.exists():
        return None
    with reading(path):
        return _read(path, name, shape)


@following("kept images")
def _read(path: Path, name: str, shape: InputShape) -> KeptSet:
    tensors = safetensors.torch.load_file(path)
    pixels, labels, rows = (tensors[f"{name}/{part}"] for part in ("pixels", "labels", "rows"))
    total, count = int(tensors[f"{name}/total"]), len(rows)
    right = pixels.shape == shape.batch(count) and pixels.dtype == torch.uint8
    # Labels are a class an image, or several numbers.
    if not right or len(labels) != count or rows.shape != (count,) or not 0 < count <= total:
        raise ValueError(f"its set {name!r} is no set of images {shape}")
    return KeptSet(pixels=pixels, labels=labels, rows=rows, total=total)
