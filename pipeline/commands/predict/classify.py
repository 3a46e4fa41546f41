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
AT_ONCE = 128
"""Images that are in memory at a time."""


class Classifier:
    """The float network of some runs, and each of their files."""

    def __init__(self, runs: Sequence[Finished]) -> None:
        """Open the network of `runs`.

        Raises:
            InputError: they are of different networks, or the float weights are gone.
        """
        self._runs, self._model = runs, float_network(runs)

    def pixels(self, content: bytes, file: Path) -> Tensor:
        """An image file's content as the images of the runs are: uint8 [C, H, W].

        Raises:
            InputError: it is not an image that can be decoded; `file` is named.
        """
        recipe = self._runs[0].recipe
        return decoded(recipe.data, content, file, recipe.model.input_shape)

    def classify(self, names: Sequence[str], pixels: Tensor, top: int) -> list[Prediction]:
        """What the network and every file make of images.

        Args:
            names: of the images.
            pixels: uint8 [N, C, H, W].
            top: how many results to give.

        Raises:
            InputError: a file cannot be run.
        """
        first = self._runs[0]
        mean_std = mean_and_std(first.recipe.data, first.recipe.model.channels)
        with torch.inference_mode():
            logits = {FLOAT: self._model(normalize(pixels, *mean_std))}
        for run in self._runs:
            with reading(run.file):
                logits[run.recipe.name] = _fitting(run.logits(pixels), logits[FLOAT])
        task = task_of(first.recipe)
        return [
            task.prediction(
                name, {column: found[row] for column, found in logits.items()}, first.classes, top
            )
            for row, name in enumerate(names)
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
