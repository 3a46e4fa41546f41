"""The packages of runs that a Mac can run, with their golden images and what known faults give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError, reading
from pipeline.formats.coreml import faults, package
from pipeline.formats.coreml.file import ReferenceRunnable
from pipeline.formats.formats import FORMATS
from pipeline.formats.pixels import camera_pixels
from pipeline.formats.ports import Interface
from pipeline.formats.write import export
from pipeline.measure.device.mac import Wanted
from pipeline.measure.probabilities import logits_of, most_apart
from pipeline.stages.carried import golden_images, output_step
from pipeline.stages.context import TWIN
from pipeline.stages.export import DESCRIPTION, options_of
from pipeline.stages.finished_run import Finished
from pipeline.stages.golden import tolerance
from pipeline.tasks.tasks import link_of

_FORMAT = "coreml"


def wanted(runs: Sequence[Finished], scratch: Path) -> tuple[tuple[Wanted, ...], list[str]]:
    """The packages that run on a Mac, and what there is to say of others.

    Beside each int8 package stands the float16 one of the same network, made for this.

    Args:
        runs: finished ones.
        scratch: a folder for packages that are made.

    Raises:
        InputError: none is a Core ML package; or a package or its images cannot be used.
    """
    mine = [run for run in runs if run.recipe.target.format == _FORMAT]
    if not mine:
        names = ", ".join(f"{run.recipe.name} ({run.recipe.target.format})" for run in runs)
        raise InputError(f"{names}: a Mac is for Core ML packages; give a run that has one")
    lines = [f"{run.recipe.name}: not run: no Core ML package" for run in runs if run not in mine]
    found = []
    for number, run in enumerate(mine):
        pixels = _golden_pixels(run)
        found.append(_of_run(run, pixels))
        if run.recipe.target.precision == "int8":
            try:
                found.append(_beside(run, pixels, scratch / f"float16-{number}.mlpackage"))
            except InputError as error:
                lines.append(f"{run.recipe.name}: no float16 package to compare with: {error}")
    return tuple(found), lines


def _golden_pixels(run: Finished) -> Tensor:
    images = golden_images(run, run.report().targets[0])
    return images.pixels(torch.arange(len(images)))


def _of_run(run: Finished, pixels: Tensor) -> Wanted:
    fed, precision = run.fed(pixels).numpy(), run.recipe.target.precision
    with reading(run.file):
        answers = _answers(run.file, fed)
        wrong = faults.wrong_answers(run.file, fed) if precision == "int8" else {}
        interface = run.format.module().interface(run.file)
    target, link = run.report().targets[0], link_of(run.recipe)
    logits = logits_of(torch.from_numpy(answers), link)
    allowed, _ = tolerance(run.format, target.parity, output_step(run), logits)
    return Wanted(
        name=run.recipe.name,
        path=run.file,
        precision=precision,
        **_ports(run.file, interface, fed),
        answers=answers,
        tolerance=allowed if link is None else most_apart(allowed, link),
        wrong=wrong,
    )


def _beside(run: Finished, pixels: Tensor, path: Path) -> Wanted:
    """The float16 package of the network that a run's int8 package was made of.

    Raises:
        InputError: the run was moved without its store.
    """
    target, link = run.recipe.target, link_of(run.recipe)
    export(
        run.stage("fold", TWIN),
        _FORMAT,
        path,
        pixels=target.takes_pixels,
        options=options_of(run.recipe) & {"classifier"},
        link=link,
        description=run.stage("export", DESCRIPTION),
    )
    fed = run.fed(pixels).numpy()
    answers = _answers(path, fed)
    # As much as a run's own float package may be off.
    share = 2 * FORMATS[_FORMAT].limits.difference
    allowed = share * float(logits_of(torch.from_numpy(answers), link).abs().max())
    return Wanted(
        name=f"{run.recipe.name}, float16",
        path=path,
        precision="float",
        **_ports(path, FORMATS[_FORMAT].module().interface(path), fed),
        answers=answers,
        tolerance=allowed if link is None else most_apart(allowed, link),
        beside=True,
    )


def _answers(path: Path, fed: NDArray[np.float32]) -> NDArray[np.float32]:
    """By the reference evaluator on every system: a Mac's own answers are what is judged."""
    runnable = ReferenceRunnable(path)
    runnable.set_input(fed)
    runnable.invoke()
    return runnable.output()


def _ports(path: Path, interface: Interface, fed: NDArray[np.float32]) -> dict[str, Any]:
    """The names of input and output, and the images as Core ML is given them."""
    made: dict[str, Any] = {"input": interface.input.name, "output": interface.output.name}
    if interface.output.kind == "dictionary":
        made["labels"] = package.read(path).labels
    if interface.input.kind != "image":
        return {**made, "kind": "array", "inputs": fed}
    images = camera_pixels(fed)
    grey = images.shape[-1] == 1
    return {**made, "kind": "image", "inputs": images[..., 0] if grey else images}
