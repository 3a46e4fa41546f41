"""The images that commands look at: those that a run carries, or else those of its data.

A run that was moved has its photos elsewhere, or nowhere. What its commands look at where nothing
else is asked of them is kept with it; what they look at besides is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError, reading
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
    KeptSet,
    first_rows,
    spread_rows,
)
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.tasks import link_of, task_of


def calibration_images(run: Finished, count: int) -> Dataset:
    """The first calibration images of a run, at most `count` of them; no others.

    Raises:
        InputError: they were not kept, and its data cannot be read.
    """
    rows = partial(first_rows, count=count)
    found = _kept(run, run.stages().get("fold"), CALIBRATION, rows)
    if found is None:
        found = _taken(run.dataset().calibration, rows)
    return _dataset(run, calibration=found)


def images_of_tests(run: Finished, count: int) -> Dataset:
    """Images from all over the first test set of a run, at most `count` of them; no others.

    Raises:
        InputError: as of `calibration_images`.
    """
    rows = partial(spread_rows, count=count)
    found = _kept(run, run.stages().get("judge_fold"), TEST, rows)
    return _dataset(run, test=_taken(_tested(run), rows) if found is None else found)


def first_image(run: Finished) -> Dataset:
    """The image that a run's file is timed on, as the only one of a test set.

    Raises:
        InputError: as of `calibration_images`.
    """
    rows = partial(first_rows, count=1)
    found = _kept(run, run.directory, FIRST, rows)
    return _dataset(run, test=_taken(_tested(run), rows) if found is None else found)


def golden_images(run: Finished, target: TargetResult) -> Images:
    """The test images of a run's bundle.

    Raises:
        InputError: as of `calibration_images`; or the file cannot be run.
    """
    if (found := _kept(run, run.directory, GOLDEN, None)) is not None:
        return found
    images, task = _tested(run), task_of(run.recipe)
    rows = golden.candidates(task, images)
    answers = run.logits(images.pixels(rows))
    allowed, _ = golden.tolerance(run.format, target.parity, output_step(run), answers)

    def fed(chosen: Tensor) -> Tensor:
        return run.fed(images.pixels(rows[chosen]))

    moved = None
    if run.recipe.target.precision == "int8":
        moved = golden.moved_by_faults(run.format, run.file, answers, fed, link_of(run.recipe))
    return images.take(rows[golden.chosen(task, answers, allowed, moved)])


def some_pixels(run: Finished, count: int) -> Tensor:
    """Pixels of images of a run, at most `count`: uint8 (images, channels, height, width).

    Those that it carries where they are enough: of its bundle, from all over its first test set,
    and of its calibration set. Else test images of its data, or what it carries where that is gone.

    Raises:
        InputError: it carries none, and its data cannot be read.
    """
    carried = torch.cat([pixels for pixels in _carried(run) if pixels is not None] or [_none(run)])
    if len(carried) >= count:
        return carried[:count]
    try:
        images = _tested(run)
    except InputError:
        if len(carried):
            return carried
        raise
    return images.pixels(spread_rows(len(images), count))


def _carried(run: Finished) -> Iterator[Tensor | None]:
    """The sets that a run carries; an image of the bundle can be among those of the test set."""
    golden = _kept_set(run, run.directory, GOLDEN)
    test = _kept_set(run, run.stages().get("judge_fold"), TEST)
    yield None if golden is None else golden.pixels
    if test is not None:
        known = () if golden is None else golden.rows.tolist()
        fresh = [place for place, row in enumerate(test.rows.tolist()) if row not in known]
        yield test.pixels[fresh]
    calibration = _kept_set(run, run.stages().get("fold"), CALIBRATION)
    yield None if calibration is None else calibration.pixels


def _none(run: Finished) -> Tensor:
    return torch.empty(run.shape.batch(0), dtype=torch.uint8)


def _kept_set(run: Finished, folder: Path | None, name: str) -> KeptSet | None:
    """A set that was kept in a folder; None where it was not."""
    return None if folder is None else kept_images.read(folder / KEPT_IMAGES, name, run.shape)


def output_step(run: Finished) -> float | None:
    """The step of the grid that a run's answers lie on; None of a float file.

    Raises:
        InputError: the run does not carry it, and its program is gone.
    """
    from pipeline.compress.quantization.program import load
    from pipeline.measure.layers import layers_of

    if run.recipe.target.precision == "float":
        return None
    if (kept := kept_layers.read(run.directory / kept_layers.LAYERS_FILE)) is not None:
        return kept.step
    program = run.stage("fold", PROGRAM)
    with reading(program):
        return layers_of(load(program))[-1].scale


Rows = Callable[[int], Tensor]
"""Which rows of a set of so many images."""


def _kept(run: Finished, folder: Path | None, name: str, rows: Rows | None) -> Images | None:
    """Images that were kept in a folder; without `rows` all of them. None where one is not there.

    Older runs have kept none.
    """
    kept = _kept_set(run, folder, name)
    if kept is None:
        return None
    return kept.images(kept.rows if rows is None else rows(kept.total), run.shape)


def _taken(images: Images, rows: Rows) -> Images:
    return images.take(rows(len(images)))


def _tested(run: Finished) -> Images:
    return next(iter(run.dataset().tests.values()))


def _dataset(
    run: Finished, *, calibration: Images | None = None, test: Images | None = None
) -> Dataset:
    """A dataset with these images alone; of the whole one it says nothing."""
    nothing = Images(labels=torch.empty(0, dtype=torch.int64), shape=run.shape, source=_none(run))
    mean, std = run.mean_and_std
    return Dataset(
        name=run.recipe.data.kind,
        classes=run.classes,
        train=nothing,
        calibration=nothing if calibration is None else calibration,
        tests={} if test is None else {TEST: test},
        mean=mean,
        std=std,
        sha256="",
        training_sha256="",
    )
