"""The files of runs on emulated processors, as one record."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from pipeline.base.console import Advance
from pipeline.base.errors import InputError, reading
from pipeline.base.machine import code_info, host_info, utc_now
from pipeline.base.safe_files import write_whole
from pipeline.compress.quantization import program
from pipeline.measure.arm64.compare import Asked, compared
from pipeline.measure.arm64.record import Arm64, FileOnArm64
from pipeline.measure.lanes.arm64 import jobs
from pipeline.measure.lanes.arm64.machine import Machine
from pipeline.measure.timing import sha256_of
from pipeline.stages import kept_layers
from pipeline.stages.carried import output_step, some_pixels
from pipeline.stages.context import PROGRAM
from pipeline.stages.finished_run import Finished
from pipeline.tasks.tasks import link_of

_NOT_HERE = "its program is not here: it lies in the store, beside the run's folder"
Tracked = Callable[[str, int], AbstractContextManager[Advance]]


def checked(
    runs: Sequence[Finished], cpus: Sequence[str], images: int, machine: Machine, tracked: Tracked
) -> Arm64:
    """Run the files of runs on every processor, and compare.

    Args:
        runs: one at least whose format has a runtime there.
        cpus: of `lane.CPUS`.
        images: how many, at most.
        machine: that was set up.
        tracked: a progress bar.

    Raises:
        InputError: no file can be run there; names why. Or images cannot be found.
    """
    reasons = {run.recipe.name: jobs.cannot_run(run.recipe.target.format) for run in runs}
    not_run = {name: why for name, why in reasons.items() if why is not None}
    if len(not_run) == len(runs):
        name, why = next(iter(not_run.items()))
        raise InputError(f"{name}: {why}")
    files = tuple(
        _file(run, cpus, images, tracked) for run in runs if run.recipe.name not in not_run
    )
    return Arm64(
        measured_at=utc_now(),
        code=code_info(),
        host=host_info(),
        emulator=machine.emulator,
        packages=machine.made_of.versions,
        files=files,
        not_run=not_run,
        alike=all(cpu.alike for file in files for cpu in file.cpus),
    )


def _file(run: Finished, cpus: Sequence[str], images: int, tracked: Tracked) -> FileOnArm64:
    asked = _asked(run, images)
    target = run.recipe.target
    with tracked(run.recipe.name, len(asked.images) * len(cpus)) as advance:
        records = tuple(ran.record for ran in compared(asked, cpus, advance))
    return FileOnArm64(
        name=run.recipe.name,
        format=target.format,
        precision=target.precision,
        runtime=run.format.runtime,
        sha256=sha256_of(run.file),
        cpus=records,
    )


def _asked(run: Finished, images: int) -> Asked:
    """The file of a run, with its images, and its program where that is there."""
    step = output_step(run)
    kept = kept_layers.read(run.directory / kept_layers.LAYERS_FILE)
    found = None if step is None else _program(run)
    return Asked(
        file=run.model_file,
        images=run.fed(some_pixels(run, images)),
        step=step,
        program=found,
        no_program=_NOT_HERE if found is None else None,
        link=link_of(run.recipe),
        modules={} if kept is None else kept.modules,
    )


def _program(run: Finished) -> torch.export.ExportedProgram | None:
    """That a run's file was written from; None where the run was moved without its store."""
    try:
        file = run.stage("fold", PROGRAM)
    except InputError:
        return None
    with reading(file):
        return program.load(file)


def write(found: Arm64, path: Path) -> None:
    """Write the record."""
    write_whole(path, json.dumps(found.model_dump(mode="json"), indent=1) + "\n")
