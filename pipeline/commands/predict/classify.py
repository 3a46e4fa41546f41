"""The classes of single images: the float network and every exported file side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.stages.finished_run import Finished, float_network
from pipeline.tasks.images.load import decoded
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.images.statistics import mean_and_std
from pipeline.tasks.ranking import first_class, ranked

FLOAT = "float"


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """What the float network and every file say of one image.

    Attributes:
        image: its name.
        classes: class names, best first by the float network.
        scores: softmax probability of each of `classes`, by column: the float network first,
            then every file.
        best: name of the class that each column puts first.
        largest_difference: between a file's and the float network's scores, over all classes.
    """

    image: str
    classes: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    best: dict[str, str]
    largest_difference: float


def classify(
    runs: Sequence[Finished], images: Sequence[tuple[str, bytes]], top: int
) -> list[ImageScores]:
    """Classify images with the float network of some runs and with each of their files.

    Args:
        runs: of one float network.
        images: name and file content of each.
        top: how many classes to give.

    Raises:
        InputError: an image cannot be read, the runs are of different networks, or the float
            weights are gone.
    """
    first, model = runs[0], float_network(runs)
    side, data = first.recipe.model.input_size, first.recipe.data
    pixels = torch.stack([decoded(data, content, Path(name), side) for name, content in images])
    normalized = normalize(pixels, *mean_and_std(data))
    with torch.inference_mode():
        logits = {FLOAT: model(normalized)}
    for run in runs:
        with reading(run.file):
            logits[run.recipe.name] = _fitting(run.logits(pixels), logits[FLOAT])
    names = [name for name, _ in images]
    return [ranked_scores(name, i, logits, first.classes, top) for i, name in enumerate(names)]


def _fitting(found: Tensor, expected: Tensor) -> Tensor:
    """Logits, as many as the float network gives.

    Raises:
        ValueError: they are more or fewer, or no numbers.
    """
    if found.shape != expected.shape or not found.isfinite().all():
        shape, wanted = list(found.shape), list(expected.shape)
        raise ValueError(f"it gives logits {shape}, not all of them finite or not {wanted}")
    return found


def ranked_scores(
    name: str, index: int, logits: dict[str, Tensor], classes: Sequence[str], top: int
) -> ImageScores:
    """The answers to one image, the classes ordered by the float network's logits.

    Args:
        name: of the image.
        index: row of the image in `logits`.
        logits: (images, classes) by column, the float network's among them.
        classes: names.
        top: how many classes to give.
    """
    given = {column: found[index] for column, found in logits.items()}
    # By the logits: probabilities of logits far apart are all 0, and would tie.
    order = ranked(given[FLOAT])[:top].tolist()
    mine = {column: found.softmax(0) for column, found in given.items()}
    return ImageScores(
        image=name,
        classes=tuple(classes[i] for i in order),
        scores={column: tuple(float(s[i]) for i in order) for column, s in mine.items()},
        best={column: classes[int(first_class(found))] for column, found in given.items()},
        largest_difference=max(float((s - mine[FLOAT]).abs().max()) for s in mine.values()),
    )
