"""Golden vectors: a few test images with what the file answers, to check an app against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.records import TargetResult
from pipeline.stages.carried import golden_images, output_step
from pipeline.stages.finished_run import Finished
from pipeline.stages.golden import tolerance
from pipeline.tasks.task import TaskModule

EXPECTED = "expected.csv"


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Images and the answers to them.

    Attributes:
        pixels: uint8 (images, channels, height, width).
        labels: what each image should be answered with.
        logits: float32 (images, classes), of the file.
        tolerance: most that a logit may be off.
        why: where the tolerance comes from.
    """

    pixels: NDArray[np.uint8]
    labels: tuple[Any, ...]
    logits: NDArray[np.float32]
    tolerance: float
    why: str


def vectors(run: Finished, target: TargetResult) -> Vectors:
    """The images of a run that are handed over, and what its file answers to them.

    Raises:
        InputError: the file cannot be run; or, of an older run, its images or its program are
            gone.
    """
    images = golden_images(run, target)
    pixels = images.pixels(torch.arange(len(images)))
    logits = run.logits(pixels)
    allowed, why = tolerance(target, output_step(run), logits)
    return Vectors(
        pixels=pixels.numpy(),
        labels=tuple(images.labels.tolist()),
        logits=logits.numpy(),
        tolerance=allowed,
        why=why,
    )


def write(found: Vectors, folder: Path, task: TaskModule) -> None:
    """Write NN.png and NN.rgb for every image, and expected.csv with the logits."""
    folder.mkdir()
    heads, rows = task.golden_table(torch.from_numpy(found.logits), found.labels)
    lines = [",".join(["image", *heads])]
    for row, (pixels, cells) in enumerate(zip(found.pixels, rows, strict=True)):
        name = f"{row:02d}"
        rgb = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        Image.fromarray(rgb if len(pixels) == 3 else rgb[..., 0]).save(folder / f"{name}.png")
        (folder / f"{name}.rgb").write_bytes(rgb.tobytes())
        lines.append(",".join([name, *cells]))
    (folder / EXPECTED).write_text("\n".join(lines) + "\n", encoding="utf-8")
