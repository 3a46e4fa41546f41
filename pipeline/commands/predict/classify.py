"""What is made of single images: the float network and every exported file side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.stages.finished_run import (
    Finished,
    float_network,
    no_code,
    no_float_weights,
    refuse_others,
)
from pipeline.tasks.images.load import decoded
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.task import Prediction
from pipeline.tasks.tasks import task_of

FLOAT = "float"
AT_ONCE = 128
"""Images that are in memory at a time."""


class Classifier:
    """The float network of some runs, and each of their files.

    Attributes:
        missing: why the float network does not answer, where a run was moved without it.
    """

    def __init__(self, runs: Sequence[Finished]) -> None:
        """Open the network of `runs`.

        Raises:
            InputError: they are of different networks, or the float weights cannot be read.
        """
        refuse_others(runs)
        self.missing = no_float_weights(runs[0]) or no_code(runs[0])
        self._runs, self._model = runs, None if self.missing else float_network(runs)

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
        task = task_of(first.recipe)
        wanted = len(task.outputs(first.classes))
        logits: dict[str, Tensor] = {}
        if self._model is not None:
            with torch.inference_mode():
                logits[FLOAT] = self._model(normalize(pixels, *first.mean_and_std))
        for run in self._runs:
            with reading(run.file):
                found = run.logits(pixels)
                logits[run.recipe.name] = _fitting(found, _shape(logits, found, wanted))
        return [
            task.prediction(
                name, {column: found[row] for column, found in logits.items()}, first.classes, top
            )
            for row, name in enumerate(names)
        ]


def _shape(known: Mapping[str, Tensor], found: Tensor, outputs: int) -> tuple[int, ...]:
    """What logits must be: as those that are known, else one for each output, or a map for each."""
    if known:
        return tuple(next(iter(known.values())).shape)
    return (len(found), outputs, *found.shape[2:])


def _fitting(found: Tensor, wanted: tuple[int, ...]) -> Tensor:
    """Logits, as many as the float network gives.

    Raises:
        ValueError: they are more or fewer, or no numbers.
    """
    if found.shape != wanted or not found.isfinite().all():
        raise ValueError(
            f"it gives logits {list(found.shape)}, not all of them finite or not {list(wanted)}"
        )
    return found
