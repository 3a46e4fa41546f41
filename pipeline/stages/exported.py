"""What the stages after `export` share: its file, and the calibration images as a test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pipeline.formats.format import Format
from pipeline.formats.formats import FORMATS
from pipeline.measure import layers
from pipeline.measure.lanes.lane import ModelFile
from pipeline.stages.context import Context, Inputs
from pipeline.tasks.images.dataset import Dataset

CALIBRATION = "(calibration)"
"""Key of the calibration images beside the test sets; no test set can be named so."""


def with_calibration(dataset: Dataset) -> Dataset:
    """The dataset with its calibration images as a further test set."""
    return replace(dataset, tests={**dataset.tests, CALIBRATION: dataset.calibration})


def step_of(folded: torch.export.ExportedProgram) -> float | None:
    """The step of the grid that a quantized program's logits lie on; None for a float one."""
    found = layers.layers_of(folded)
    return found[-1].scale if found else None


def file_of(context: Context, inputs: Inputs) -> Path:
    """The file that `export` wrote."""
    return inputs["export"] / f"model{format_of(context).suffix}"


def format_of(context: Context) -> Format:
    """The format of the file."""
    return FORMATS[context.recipe.target.format]


def model_file(context: Context, path: Path) -> ModelFile:
    """A file of the target's format, as lanes take it."""
    return ModelFile(path=path, format=context.recipe.target.format)
