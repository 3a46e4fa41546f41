"""What a file answers to the test sets of a dataset, on any lane."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.measure.lanes.lane import Advance, Lane, ModelFile, silent
from pipeline.tasks.evaluation import evaluation_batch
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset


def answers_to_tests(
    lane: Lane, file: ModelFile, dataset: Dataset, threads: int, advance: Advance = silent
) -> dict[str, Tensor]:
    """Answers (images, ...) to every test image, float32, by test set; all sets are one job.

    Args:
        lane: where the file runs.
        file: that is run.
        dataset: its images as the file takes them.
        threads: of the CPU.
        advance: told of the images that are done.

    Raises:
        InputError: the file cannot be run there.
    """
    found = lane.answers({"file": file}, _inputs(dataset), threads, advance)["file"].float()
    lengths = [len(images) for images in dataset.tests.values()]
    if len(found) != sum(lengths):
        raise ValueError(f"{len(found)} answers to {sum(lengths)} images")
    return dict(zip(dataset.tests, torch.split(found, lengths), strict=True))


def _inputs(dataset: Dataset) -> Iterator[Tensor]:
    for images in dataset.tests.values():
        for x, _ in batches(images, evaluation_batch(images.shape), dataset):
            yield x
