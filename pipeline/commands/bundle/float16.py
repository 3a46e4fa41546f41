"""A float16 file beside an int8 one: the same weights, for GPUs, which compute in float16."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError, reading
from pipeline.base.record import Above0, Positive, Record, Sha256, Share, Text
from pipeline.compress.quantization import program
from pipeline.formats.write import export
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.parity import float_difference
from pipeline.measure.probabilities import logits_of, most_apart, told
from pipeline.measure.timing import sha256_of, size_bytes
from pipeline.stages.carried import some_pixels
from pipeline.stages.context import TWIN
from pipeline.stages.export import DESCRIPTION, options_of
from pipeline.stages.finished_run import Finished
from pipeline.tasks.tasks import TASKS, link_of, task_of

STEM = "model_float16"
EXPECTED = "expected_float16.csv"
"""The file's answers to the golden images, beside those of the int8 file."""
_KEPT = {"classifier", "opset17"}
"""Ways in which the file differs as the int8 one does."""
_IMAGES = 50
_LIMIT = 1e-2
"""Most difference to the float program, as a share of the largest logit, at the 99th percentile:
what a Core ML file may have, which computes in float16 too."""


class Float16(Record):
    """A file of the same weights in float16.

    Attributes:
        file: its name; what goes in and comes out is called as in the int8 file.
        sha256: of the file, or of the names and contents of a package's files.
        size_bytes: on disk.
        expected: its answers to the golden images, in the golden folder.
        tolerance: most that a number may be off from these; a GPU computes in float16.
        images: that it was compared with the float network on, whose weights it has.
        difference: to that, at the 99th percentile, as a share of the largest logit.
        limit: of `difference`.
        agreement: share of the images with the same result as that network.
    """

    file: Text
    sha256: Sha256
    size_bytes: Positive
    expected: Text = EXPECTED
    tolerance: Above0
    images: Positive
    difference: float
    limit: Above0 = _LIMIT
    agreement: Share


def why_none(run: Finished) -> str | None:
    """Why a run has no such file; None where it has."""
    if run.recipe.target.precision == "float":
        return "its file is a float one already"
    if TASKS[run.recipe.task.kind].maps:
        return "float16 files are written of what gives a number for each class, and not of maps"
    return None


def write(run: Finished, folder: Path, pixels: Tensor) -> tuple[Float16, Tensor]:
    """Write the float16 file of an int8 run.

    Args:
        run: finished, with its store.
        folder: of the bundle.
        pixels: of the golden images, uint8 (images, channels, height, width).

    Returns:
        What is known of it, and its answers to the golden images, float32 (images, numbers).

    Raises:
        InputError: the float network of the run is gone, or the file does not answer as it does.
    """
    twin, target = run.stage("fold", TWIN), run.recipe.target
    file, link = folder / f"{STEM}{run.format.suffix}", link_of(run.recipe)
    export(
        twin,
        target.format,
        file,
        pixels=target.takes_pixels,
        options={*(options_of(run.recipe) & _KEPT), "float16"},
        link=link,
        description=run.stage("export", DESCRIPTION),
    )
    fed = run.fed(some_pixels(run, _IMAGES))
    with reading(twin):
        network = program.load(twin).module(check_guards=False)
    with torch.inference_mode():
        wanted = torch.cat([network(part).float() for part in torch.split(fed, 8)])
    found = told(_answers(run, file, fed), wanted, link)
    difference = float_difference({"": found}, {"": wanted})
    if not difference <= _LIMIT:
        raise InputError(
            f"{run.directory}: its float16 file answers {difference:.2g} of the largest logit "
            f"apart from its float network (at most {_LIMIT:g}): numbers inside are too large or "
            "too small for float16; bundle without --float16"
        )
    answers = _answers(run, file, run.fed(pixels))
    tolerance = 2 * _LIMIT * float(logits_of(answers, link).abs().max())
    made = Float16(
        file=file.name,
        sha256=sha256_of(file),
        size_bytes=size_bytes(file),
        tolerance=tolerance if link is None else most_apart(tolerance, link),
        images=len(fed),
        difference=difference,
        agreement=task_of(run.recipe).compare({"": found}, {"": wanted}, None).share,
    )
    return made, answers


def _answers(run: Finished, file: Path, fed: Tensor) -> Tensor:
    model = ModelFile(path=file, format=run.recipe.target.format)
    return LANES[HOST].answers({"": model}, [fed], run.recipe.threads)[""].float()
