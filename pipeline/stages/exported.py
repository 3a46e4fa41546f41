"""What the stages after `export` share: its file, and the calibration images as a test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.compress.quantization import grid
from pipeline.formats.format import Format
from pipeline.formats.formats import FORMATS
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.parity_record import OutputSteps
from pipeline.stages.context import Context, Inputs, fed
from pipeline.tasks.evaluation import predictions
from pipeline.tasks.images.dataset import Dataset, sample_rows
from pipeline.tasks.images.pixels import Images

CALIBRATION = "(calibration)"
"""Key of the calibration images beside the test sets; no test set can be named so."""


_FEWEST_IMAGES, _FEWEST_NUMBERS = 64, 2**14
"""What a percentile of the answers' numbers is taken of: all that there are, where they are few."""


def with_calibration(dataset: Dataset) -> Dataset:
    """The dataset with its calibration images as a further test set."""
    return replace(dataset, tests={**dataset.tests, CALIBRATION: dataset.calibration})


def for_gates(context: Context) -> Dataset:
    """The images that gates are taken on, as program and file are given them.

    Those of `with_calibration`, of each set at most `verify.images`.
    """
    whole, most = fed(context).dataset, context.recipe.verify.images

    def some(images: Images) -> Images:
        return images if len(images) <= most else images.take(sample_rows(images, most))

    tests = {name: some(images) for name, images in whole.tests.items()}
    return with_calibration(replace(whole, tests=tests, calibration=some(whole.calibration)))


def tests_of(context: Context, gates: Dataset) -> Dataset:
    """The test sets alone of the images that gates are taken on."""
    return replace(gates, tests={name: gates.tests[name] for name in context.dataset.tests})


def step_of(folded: torch.export.ExportedProgram, answers: Tensor) -> float | None:
    """The step in which the answers of a quantized program are compared; None for a float one.

    That of the grid that they lie on. Where the last layer stays in float they lie on none: then
    that of the grid which would hold them, so that a file may differ as much as others may.

    Args:
        folded: the program.
        answers: of it, for the calibration images.
    """
    from pipeline.measure import layers

    if not layers.layers_of(folded):
        return None
    scale = layers.output_scale(folded)
    if scale is not None:
        return scale
    low, high = (end.float() for end in torch.aminmax(answers))
    return float(grid.activation_grid(low, high)[0])


def own_rounding(
    folded: torch.export.ExportedProgram,
    dataset: Dataset,
    expected: Tensor,
    epsilon: float,
    *,
    biases: bool = False,
) -> OutputSteps | None:
    """How far the calibration images' logits move when a program rounds otherwise.

    Args:
        folded: the program.
        dataset: as the program takes it.
        expected: its logits for the calibration images.
        epsilon: of the arithmetic that it is compared in.
        biases: whether what it is compared with does not round them.
    """
    from pipeline.compress.quantization.other_rounding import rounded_otherwise
    from pipeline.measure import parity

    step = step_of(folded, expected)
    if step is None:
        return None
    answers = rounded_otherwise(folded, epsilon, biases=biases)
    count = max(_FEWEST_IMAGES, _FEWEST_NUMBERS * len(expected) // max(expected.numel(), 1))
    some = dataset.calibration.take(torch.arange(min(count, len(expected))))
    moved = {CALIBRATION: predictions(answers, some, dataset)}
    return parity.output_steps(moved, {CALIBRATION: expected[: len(some)]}, step)


def file_of(context: Context, inputs: Inputs) -> Path:
    """The file that `export` wrote."""
    return inputs["export"] / f"model{format_of(context).suffix}"


def format_of(context: Context) -> Format:
    """The format of the file."""
    return FORMATS[context.recipe.target.format]


def model_file(context: Context, path: Path) -> ModelFile:
    """A file of the target's format, as lanes take it."""
    return ModelFile(path=path, format=context.recipe.target.format)
