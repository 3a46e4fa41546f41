"""The programs behind a run's int8 file."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.base.errors import InputError, reading
from pipeline.compress.quantization import program
from pipeline.stages.context import PROGRAM, TWIN
from pipeline.stages.finished_run import Finished


def int8_programs(
    run: Finished,
) -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram]:
    """The quantized program of a run and its float twin.

    Raises:
        InputError: the target is float, or a program is gone.
    """
    if run.recipe.target.precision == "float":
        raise InputError(
            f"{run.recipe.name}: a float file has no int8 layers to compare; debug an int8 target"
        )
    folded, twin = (_program(run.stage("fold", name)) for name in (PROGRAM, TWIN))
    return folded, twin


def _program(file: Path) -> torch.export.ExportedProgram:
    with reading(file):
        return program.load(file)
