"""Golden vectors: a few test images with what the file answers, to check an app against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.measure.probabilities import logits_of, most_apart
from pipeline.report.records import TargetResult
from pipeline.stages.carried import golden_images, output_step
from pipeline.stages.finished_run import Finished
from pipeline.stages.golden import tolerance
from pipeline.tasks.task import TaskModule
from pipeline.tasks.tasks import link_of

EXPECTED = "expected.csv"


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Images and the answers to them.

    Attributes:
        pixels: uint8 (images, channels, height, width).
        labels: what each image should be answered with.
        logits: float32 (images, classes), of the file, or those that its probabilities stand for;
            or maps (images, classes, h, w).
        tolerance: most that an answer of the file may be off.
        why: where the tolerance comes from.
        probabilities: float32 (images, classes), of the file; None where it gives logits.
    """

    pixels: NDArray[np.uint8]
    labels: tuple[Any, ...]
    logits: NDArray[np.float32]
    tolerance: float
    why: str
    probabilities: NDArray[np.float32] | None = None


def vectors(run: Finished, target: TargetResult) -> Vectors:
    """The images of a run that are handed over, and what its file answers to them.

    Raises:
        InputError: the file cannot be run; or, of an older run, its images or its program are
            gone.
    """
    images = golden_images(run, target)
    pixels = images.pixels(torch.arange(len(images)))
    answers, link = run.answers(pixels), link_of(run.recipe)
    logits = logits_of(answers, link)
    allowed, why = tolerance(run.format, target.parity, output_step(run), logits)
    if link is not None:
        why = f"what becomes of a probability at most where every logit is {allowed:.4g} off: {why}"
        allowed = most_apart(allowed, link)
    return Vectors(
        pixels=pixels.numpy(),
        labels=tuple(images.labels.tolist()),
        logits=logits.numpy(),
        probabilities=None if link is None else answers.numpy(),
        tolerance=allowed,
        why=why,
    )


def write(found: Vectors, folder: Path, task: TaskModule) -> None:
    """Write NN.png, NN.rgb and, of maps, NN.f32 for every image; and expected.csv."""
    folder.mkdir()
    for row, pixels in enumerate(found.pixels):
        name = f"{row:02d}"
        rgb = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        Image.fromarray(rgb if len(pixels) == 3 else rgb[..., 0]).save(folder / f"{name}.png")
        (folder / f"{name}.rgb").write_bytes(rgb.tobytes())
        if found.logits.ndim > 2:
            (folder / f"{name}.f32").write_bytes(found.logits[row].astype("<f4").tobytes())
    write_expected(found, folder / EXPECTED, task)


def write_expected(found: Vectors, path: Path, task: TaskModule) -> None:
    """Write a line for every image: its name, what it should be answered with, the answers."""
    heads, rows = task.golden_table(torch.from_numpy(found.logits), found.labels)
    if found.probabilities is not None:
        heads = [head.replace("logit_", "probability_") for head in heads]
        count = found.probabilities.shape[1]
        numbers = [[f"{value:.9g}" for value in row] for row in found.probabilities.tolist()]
        rows = [[*row[:-count], *given] for row, given in zip(rows, numbers, strict=True)]
    lines = [",".join(["image", *heads])]
    lines += [",".join([f"{row:02d}", *cells]) for row, cells in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
