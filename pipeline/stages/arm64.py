"""The stage that runs the file on emulated ARM64 processors, where a recipe asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.base.record import Text
from pipeline.formats.limits import Limits
from pipeline.measure.arm64.record import OnCpu
from pipeline.measure.lanes.arm64 import machine
from pipeline.measure.lanes.arm64.lane import CPUS
from pipeline.measure.probabilities import told
from pipeline.stages.context import LOGITS, PROGRAM, Context, Inputs
from pipeline.stages.exported import (
    CALIBRATION,
    file_of,
    for_gates,
    format_of,
    model_file,
    own_rounding,
    step_of,
)
from pipeline.stages.kept_images import spread_rows
from pipeline.stages.stage import COMPARING, CORE, LANE, QUANTIZING, Stage, StageFacts
from pipeline.stages.stage import IMAGES as SEEING
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.tasks import link_of

if TYPE_CHECKING:
    from pipeline.measure.arm64.compare import Ran


class Arm64Facts(StageFacts):
    """What a file does on each processor.

    Attributes:
        emulator: such as QEMU 7.2.
        cpus: see the report's `TargetResult`.
    """

    emulator: Text
    cpus: tuple[OnCpu, ...]

    def details(self) -> list[str]:
        """Images whose answers are this machine's, on the worst processor."""
        worst = min(self.cpus, key=lambda cpu: cpu.same / cpu.images)
        return [f"{worst.same} of {worst.images} images answered as here on {worst.cpu}"]


def emulate(context: Context, inputs: Inputs, out: Path) -> Arm64Facts:
    """Run the exported file on every processor, beside this machine and the program."""
    from pipeline.compress.quantization import program
    from pipeline.measure import layers, parity
    from pipeline.measure.arm64.compare import FLOAT, IMAGES, Asked, compared

    dataset = for_gates(context)
    name, tested = next(iter(dataset.tests.items()))
    rows = spread_rows(len(tested), IMAGES)
    folded = program.load(inputs["fold"] / PROGRAM)
    with reading(inputs["judge_fold"] / LOGITS):
        expected = torch.load(inputs["judge_fold"] / LOGITS, weights_only=True)
    step = step_of(folded, expected[CALIBRATION])
    asked = Asked(
        file=model_file(context, file_of(context, inputs)),
        images=normalize(tested.pixels(rows), dataset.mean, dataset.std),
        step=step,
        program=None if step is None else folded,
        no_program=FLOAT if step is None else None,
        link=link_of(context.recipe),
        modules={layer.name: layer.module for layer in layers.layers_of(folded)},
    )
    limits = format_of(context).limits
    rounding = own_rounding(folded, dataset, expected[CALIBRATION], limits.epsilon)
    allowed = parity.widened(limits, rounding)
    with context.tracked("run the file on ARM64", len(rows) * len(CPUS)) as advance:
        found = tuple(
            _judged(context, ran, expected[name][rows], step, allowed)
            for ran in compared(asked, tuple(CPUS), advance)
        )
    return Arm64Facts(emulator=machine.set_up(print).emulator, cpus=found)


def _judged(
    context: Context, ran: Ran, wanted: Tensor, step: float | None, limits: Limits
) -> OnCpu:
    """A processor's record, with the gates that `verify` has for this machine's answers."""
    from pipeline.measure import parity

    there = {"images": told(ran.answers, wanted, link_of(context.recipe))}
    ours = {"images": wanted}
    compared = parity.compare_logits(there, ours, step, context.task.compare)
    misses = (*ran.record.misses, *parity.output_misses(compared, limits))
    return ran.record.model_copy(update={"misses": misses})


STAGE = Stage(
    name="arm64",
    make=emulate,
    facts=Arm64Facts,
    after=("export", "fold", "judge_fold"),
    reads=("task", "target.format", "target.input", "target.output", "threads", "verify"),
    code=(
        *(*CORE, *COMPARING, *LANE, "formats", "measure/arm64", "measure/lanes/arm64"),
        *("measure/lanes/arm64/packages.json", "stages/kept_images.py"),
        *("stages/exported.py", "stages/arm64.py"),
    ),
    packages=(*SEEING, *QUANTIZING),
    needed=lambda recipe: recipe.verify.arm64,
    of_format=True,
    sees_tests=True,
    on_host=True,
)
