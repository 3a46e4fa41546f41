"""What is made of single images: the float network and every exported file side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.stages.finished_run import Finished, float_network
from pipeline.tasks.images.load import decoded
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.images.statistics import mean_and_std
from pipeline.tasks.task import Prediction
from pipeline.tasks.tasks import task_of

FLOAT = "float"


def classify(
    runs: Sequence[Finished], images: Sequence[tuple[str, bytes]], top: int
) -> list[Prediction]:
    """Classify images with the float network of some runs and with each of their files.

    Args:
        runs: of one float network.
        images: name and file content of each.
        top: how many results to give.

    Raises:
        InputError: an image cannot be read, the runs are of different networks, or the float
            weights are gone.
    """
    first, model = runs[0], float_network(runs)
    shape, data = first.recipe.model.input_shape, first.recipe.data
    pixels = torch.stack([decoded(data, content, Path(name), shape) for name, content in images])
    normalized = normalize(pixels, *mean_and_std(data, shape.channels))
    with torch.inference_mode():
        logits = {FLOAT: model(normalized)}
    for run in runs:
        with reading(run.file):
            logits[run.recipe.name] = _fitting(run.logits(pixels), logits[FLOAT])
    task = task_of(first.recipe)
    return [
        task.prediction(
            name, {column: found[row] for column, found in logits.items()}, first.classes, top
        )
        for row, (name, _) in enumerate(images)
    ]


def _fitting(found: Tensor, expected: Tensor) -> Tensor:
    """Logits, as many as the float network gives.

    Raises:
        ValueError: they are more or fewer, or no numbers.
    """
    if found.shape != expected.shape or not found.isfinite().all():
        shape, wanted = list(found.shape), list(expected.shape)
        raise ValueError(f"it gives logits {shape}, not all of them finite or not {wanted}")
    return found
