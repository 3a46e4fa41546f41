"""The stage that runs the file beside its program."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.base.record import Count, Positive, Share, Text
from pipeline.compress.quantization import program
from pipeline.formats.file_facts import FileFacts, learned_scales, program_macs, scales_exact
from pipeline.formats.ports import Port
from pipeline.formats.scales import ScalesExact
from pipeline.measure import layers, parity
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.lanes.sets import answers_to_tests
from pipeline.measure.parity_record import Parity
from pipeline.measure.probabilities import logits_of, told
from pipeline.stages.context import LOGITS, PROGRAM, Context, Inputs, fed, first_figure
from pipeline.stages.exported import (
    CALIBRATION,
    file_of,
    format_of,
    model_file,
    own_rounding,
    step_of,
    with_calibration,
)
from pipeline.stages.stage import COMPARING, CORE, IMAGES, LANE, QUANTIZING, Stage, StageFacts
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.tasks import link_of, meaning_of


class VerifyFacts(StageFacts):
    """What a file is, and whether it answers as its program; see the report's `TargetResult`."""

    runtime: Text
    evaluated: Literal["runtime", "reference"]
    ops: dict[str, Positive]
    partitions: Count | None
    outside: tuple[Text, ...]
    takes: Text
    gives: Text
    int8_coverage: Share
    scales_exact: ScalesExact | None
    parity: Parity
    agreement: Share


def verify(context: Context, inputs: Inputs, out: Path) -> VerifyFacts:
    """Run the exported file on all calibration and test images beside the quantized program."""
    dataset = with_calibration(fed(context).dataset)
    file, form = file_of(context, inputs), format_of(context)
    folded = program.load(inputs["fold"] / PROGRAM)
    module = form.module()
    found = module.inspect(file)
    exact = scales_exact(folded, found)
    images = sum(len(test) for test in dataset.tests.values())
    answers, link = _answers(context, dataset, file, images), link_of(context.recipe)
    logits = {name: logits_of(found, link) for name, found in answers.items()}
    torch.save(logits, out / LOGITS)
    with reading(inputs["judge_fold"] / LOGITS):
        expected = torch.load(inputs["judge_fold"] / LOGITS, weights_only=True)
    limits = form.limits
    step = step_of(folded, expected[CALIBRATION])
    there = {name: told(found, expected[name], link) for name, found in answers.items()}
    compared = parity.compare_logits(there, expected, step, context.task.compare)
    rounding = own_rounding(folded, dataset, expected[CALIBRATION], limits.epsilon)
    trace = partial(module.trace, file)
    traced = (
        layers.compare_layers(folded, None, trace, layers.probes(dataset))
        if exact is not None
        else []
    )
    misses = [
        *parity.file_misses(found, exact, program_macs(folded)),
        *parity.finite_misses(answers),
        *parity.output_misses(compared, parity.widened(limits, rounding)),
        *parity.layer_misses(traced, learned_scales(folded)[0]),
    ]
    record = Parity(
        images=images,
        agreement=compared.results.share,
        steps=compared.steps,
        difference=compared.difference,
        rounding=rounding,
        layers=len(traced),
        layers_alike=sum(not layer.at_fault for layer in traced),
        misses=tuple(misses),
        first_difference=parity.describe_first_difference(traced) if misses and traced else None,
        passed=not misses,
    )
    ports = module.interface(file)
    own = {name: expected[name] for name in context.dataset.tests}
    return VerifyFacts(
        runtime=form.runtime,
        evaluated=module.evaluated(),
        ops=found.ops,
        partitions=found.partitions,
        outside=_outside(found, folded),
        takes=_takes(ports.input, dataset, pixels=context.recipe.target.takes_pixels),
        gives=_gives(ports.output, context),
        int8_coverage=found.int8_coverage,
        scales_exact=exact,
        parity=record,
        agreement=context.task.compare(there, own, None).share,
        figure=first_figure(context.task.accuracies(logits, context.dataset)),
    )


def _takes(port: Port, dataset: Dataset, *, pixels: bool) -> str:
    """What a file takes, in words."""
    colours = "red, green, blue" if port.channels == 3 else "grey"
    value = "the pixel itself, 0 to 255; the file normalises it"
    if not pixels:
        mean, std = (", ".join(f"{v:.6g}" for v in each) for each in (dataset.mean, dataset.std))
        value = f"(pixel / 255 - mean) / deviation, mean {mean}, deviation {std}"
    return f"{port.words}, {colours}; a value is {value}"


def _gives(port: Port, context: Context) -> str:
    """What a file gives, in words."""
    words = f"{port.words}: {meaning_of(context.recipe).rule}"
    if (link := link_of(context.recipe)) is None:
        return words
    within = ", outside int8," if context.recipe.target.precision == "int8" else ""
    return f"{words}; made by {link} in float32{within} behind the last layer"


def _outside(found: FileFacts, folded: torch.export.ExportedProgram) -> tuple[str, ...]:
    """What the delegate leaves out, by the names of the network, and why."""
    titles = {layer.name: layer.title for layer in layers.layers_of(folded)}
    return tuple(f"{titles.get(name, name)}, {why}" for name, why in found.outside.items())


def _answers(context: Context, dataset: Dataset, file: Path, images: int) -> dict[str, Tensor]:
    """What the file answers to all `images` of the test sets, with a progress bar."""
    with context.tracked("run the file", images) as advance:
        return answers_to_tests(
            LANES[HOST],
            model_file(context, file),
            dataset,
            context.recipe.threads,
            lambda done: advance(done, ""),
        )


STAGE = Stage(
    name="verify",
    make=verify,
    facts=VerifyFacts,
    after=("export", "fold", "judge_fold"),
    reads=("task", "target.format", "target.input", "target.output", "threads"),
    code=(*CORE, *COMPARING, *LANE, "formats", "stages/exported.py", "stages/verify.py"),
    packages=(*IMAGES, *QUANTIZING),
    of_format=True,
    sees_tests=True,
    on_host=True,
)
