"""The images that commands look at: those that a run carries, or else those of its data.

A run that was moved has its photos elsewhere, or nowhere. What its commands look at when nothing
else is asked of them is kept with it; what they look at besides is loaded.
"""

from __future__ import annotations

import torch

from pipeline.base.errors import reading
from pipeline.compress.quantization.program import load
from pipeline.measure.layers import layers_of
from pipeline.report.records import TargetResult
from pipeline.stages import golden, kept_images, kept_layers
from pipeline.stages.context import PROGRAM
from pipeline.stages.finished_run import Finished
from pipeline.stages.kept_images import (
    CALIBRATION,
    FIRST,
    GOLDEN,
    KEPT_IMAGES,
    TEST,
    first_rows,
    spread_rows,
)
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.statistics import mean_and_std
from pipeline.tasks.tasks import task_of


def calibration_images(run: Finished, count: int) -> Dataset:
    """The first calibration images of a run, at most `count` of them; no others.

    Raises:
        InputError: the run does not carry them, and its data cannot be read.
    """
    kept = kept_images.read(run.place("fold") / KEPT_IMAGES, CALIBRATION, run.shape)
    found = kept and kept.images(first_rows(kept.total, count), run.shape)
    if found is None:
        whole = run.dataset().calibration
        found = whole.take(first_rows(len(whole), count))
    return _dataset(run, calibration=found)


def images_of_tests(run: Finished, count: int) -> Dataset:
    """Images from all over the first test set of a run, at most `count` of them; no others.

    Raises:
        InputError: as of `calibration_images`.
    """
    kept = kept_images.read(run.place("judge_fold") / KEPT_IMAGES, TEST, run.shape)
    found = kept and kept.images(spread_rows(kept.total, count), run.shape)
    if found is None:
        whole = next(iter(run.dataset().tests.values()))
        found = whole.take(spread_rows(len(whole), count))
    return _dataset(run, test=found)


def first_image(run: Finished) -> Dataset:
    """The image that a run's file is timed on, as the only one of a test set.

    Raises:
        InputError: as of `calibration_images`.
    """
    kept = kept_images.read(run.directory / KEPT_IMAGES, FIRST, run.shape)
    found = kept and kept.images(kept.rows, run.shape)
    if found is None:
        found = next(iter(run.dataset().tests.values())).take(torch.tensor([0]))
    return _dataset(run, test=found)


def golden_images(run: Finished, target: TargetResult) -> Images:
    """The test images of a run's bundle.

    Raises:
        InputError: as of `calibration_images`; or the file cannot be run.
    """
    kept = kept_images.read(run.directory / KEPT_IMAGES, GOLDEN, run.shape)
    found = kept and kept.images(kept.rows, run.shape)
    if found is not None:
        return found
    images, task = next(iter(run.dataset().tests.values())), task_of(run.recipe)
    rows = golden.candidates(task, images)
    answers = run.logits(images.pixels(rows))
    allowed, _ = golden.tolerance(target, output_step(run), answers)
    return images.take(rows[golden.clear_ones(task, answers, allowed)])


def output_step(run: Finished) -> float | None:
    """The step of the grid that a run's answers lie on; None of a float file.

    Raises:
        InputError: the run does not carry it, and its program is gone.
    """
    if run.recipe.target.precision == "float":
        return None
    if (kept := kept_layers.read(run.directory / kept_layers.LAYERS_FILE)) is not None:
        return kept.step
    program = run.stage("fold", PROGRAM)
    with reading(program):
        return layers_of(load(program))[-1].scale


def _dataset(
    run: Finished, *, calibration: Images | None = None, test: Images | None = None
) -> Dataset:
    """A dataset with these images alone; what it is a part of, nothing says."""
    data, shape = run.recipe.data, run.shape
    none = torch.empty(shape.batch(0), dtype=torch.uint8)
    nothing = Images(labels=torch.empty(0, dtype=torch.int64), shape=shape, source=none)
    mean, std = mean_and_std(data, shape.channels)
    return Dataset(
        name=data.kind,
        classes=run.classes,
        train=nothing,
        calibration=nothing if calibration is None else calibration,
        tests={} if test is None else {TEST: test},
        mean=mean,
        std=std,
        sha256="",
        training_sha256="",
    )
