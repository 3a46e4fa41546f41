"""The files of runs that a phone can run, with their golden images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.base.errors import InputError, reading
from pipeline.commands.bundle.golden import vectors
from pipeline.measure.device.phone import Wanted
from pipeline.stages.finished_run import Finished

_CANNOT = {
    "coreml": "Core ML runs on Apple's systems alone",
    "onnx": "ONNX Runtime's onnxruntime_perf_test writes no answers, so that nothing could be "
    "checked before it is timed",
}


def cannot_run(format_name: str) -> str | None:
    """Why files of a format are not run on a phone by adb; None where they are."""
    return _CANNOT.get(format_name)


def wanted(runs: Sequence[Finished]) -> tuple[tuple[Wanted, ...], dict[str, str]]:
    """The files that run on a phone, and why others do not, by the name of their target.

    Raises:
        InputError: none does; or a file or its images cannot be used.
    """
    reasons = {run.recipe.name: cannot_run(run.recipe.target.format) for run in runs}
    not_run = {name: why for name, why in reasons.items() if why is not None}
    if len(not_run) == len(runs):
        name, why = next(iter(not_run.items()))
        raise InputError(f"{name}: {why}; give a run with a TFLite file")
    found = tuple(_wanted(run) for run in runs if run.recipe.name not in not_run)
    return found, not_run


def _wanted(run: Finished) -> Wanted:
    golden = vectors(run, run.report().targets[0])
    elsewhere = run.format.elsewhere
    assert elsewhere is not None  # else it is among those that cannot
    with reading(run.file):
        interface = run.format.module().interface(run.file)
        inputs = elsewhere().fed(run.file, run.fed(torch.from_numpy(golden.pixels)).numpy())
    answers = golden.logits if golden.probabilities is None else golden.probabilities
    if interface.output.layout == "NHWC":
        answers = np.moveaxis(answers, 1, -1)  # as the file's bytes have them
    return Wanted(
        name=run.recipe.name,
        path=run.file,
        format=run.recipe.target.format,
        precision=run.recipe.target.precision,
        runtime=run.format.runtime,
        interface=interface,
        inputs=inputs,
        answers=answers,
        tolerance=golden.tolerance,
    )
