"""Golden vectors: a few test images with what the file answers, to check an app against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.compress.quantization.program import load
from pipeline.formats.formats import FORMATS
from pipeline.measure.layers import layers_of
from pipeline.report.records import TargetResult
from pipeline.stages.context import PROGRAM
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.task import TaskModule
from pipeline.tasks.tasks import task_of

IMAGES = 10
"""In a bundle, where the test set has as many."""
EXPECTED = "expected.csv"

_CANDIDATES = 40


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


def vectors(run: Finished, dataset: Dataset, target: TargetResult) -> Vectors:
    """Choose images of the first test set and run the file on them.

    The images are of as many classes as can be. Where there are enough, every first class leads
    by more than twice the tolerance, so that whoever keeps the tolerance names the same class.

    Raises:
        InputError: the file cannot be run, or its program is gone.
    """
    images = next(iter(dataset.tests.values()))
    task = task_of(run.recipe)
    rows = task.golden_order(images.labels)[:_CANDIDATES]
    pixels, labels = images.pixels(rows), images.labels[rows]
    logits = run.logits(pixels)
    tolerance, why = _tolerance(run, target, logits)
    chosen = task.golden_clear(logits, tolerance)[:IMAGES].sort().values
    return Vectors(
        pixels=pixels[chosen].numpy(),
        labels=tuple(labels[chosen].tolist()),
        logits=logits[chosen].numpy(),
        tolerance=tolerance,
        why=why,
    )


def _tolerance(run: Finished, target: TargetResult, logits: Tensor) -> tuple[float, str]:
    """How far a logit may be off, from what runtimes were allowed and seen to differ."""
    limits = FORMATS[target.format].limits
    steps = target.parity.steps
    if steps is None:
        largest = float(logits.abs().max())
        share = 2 * limits.difference
        return share * largest, f"{share:g} of the largest logit, {largest:.4g}"
    program = run.stage("fold", PROGRAM)
    with reading(program):
        step = layers_of(load(program))[-1].scale
    rounding = target.parity.rounding
    # A phone's kernels sum in an order of their own, too.
    most = max(limits.p99, steps.largest, rounding.largest if rounding else 0)
    why = (
        f"{most} steps of {step:.6g}, the grid of the logits: the most by which this file and its "
        f"program differed on {target.parity.images} images, or the program from itself where it "
        f"was rounded otherwise, and no less than {limits.p99}"
    )
    return most * step, why


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
