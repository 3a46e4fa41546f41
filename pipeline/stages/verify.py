"""The stage that runs the file beside its program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pipeline.base.errors import reading
from pipeline.base.profile import span
from pipeline.base.record import Count, Positive, Share, Text
from pipeline.formats.file_facts import FileFacts, learned_scales, program_macs, scales_exact
from pipeline.formats.ports import Port
from pipeline.formats.scales import ScalesExact
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.lanes.sets import answers_to_tests
from pipeline.measure.parity_record import OutputSteps, Parity
from pipeline.measure.probabilities import logits_of, told
from pipeline.stages import golden
from pipeline.stages.context import LOGITS, PROGRAM, Context, Inputs, fed, first_figure
from pipeline.stages.exported import (
    CALIBRATION,
    file_of,
    for_gates,
    format_of,
    model_file,
    own_rounding,
    step_of,
    tests_of,
    with_calibration,
)
from pipeline.stages.stage import COMPARING, CORE, IMAGES, LANE, QUANTIZING, Stage, StageFacts
from pipeline.tasks.images.dataset import Dataset, sample_rows
from pipeline.tasks.images.pixels import normalize
from pipeline.tasks.tasks import link_of, meaning_of

if TYPE_CHECKING:
    from pipeline.measure import layers, parity


class VerifyFacts(StageFacts):
    """What a file is, and whether it answers as its program; see the report's `TargetResult`.

    Attributes:
        golden: rows of the first test set, whose images and answers a bundle holds.
    """

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
    agreement_images: Positive
    golden: tuple[Count, ...]


def verify(context: Context, inputs: Inputs, out: Path) -> VerifyFacts:
    """Run the exported file on all test images, and compare it with the quantized program.

    The program answered a sample of them (`exported.for_gates`), and that is what is compared.
    """
    from pipeline.compress.quantization import program
    from pipeline.measure import layers, parity

    whole, gates = fed(context).dataset, for_gates(context)
    file, form = file_of(context, inputs), format_of(context)
    folded = program.load(inputs["fold"] / PROGRAM)
    module = form.module()
    found = module.inspect(file)
    exact = scales_exact(folded, found)
    answers, link = _answers(context, file, whole, gates), link_of(context.recipe)
    logits = {name: logits_of(found, link) for name, found in answers.items()}
    torch.save(logits, out / LOGITS)
    with reading(inputs["judge_fold"] / LOGITS):
        expected = torch.load(inputs["judge_fold"] / LOGITS, weights_only=True)
    step = step_of(folded, expected[CALIBRATION])
    there = {n: told(found, expected[n], link) for n, found in _sampled(context, answers).items()}
    compared = parity.compare_logits(there, expected, step, context.task.compare)
    rounding = own_rounding(folded, gates, expected[CALIBRATION], form.limits.epsilon)
    traced: list[layers.LayerSums] = []
    if exact is not None:
        trace = partial(module.trace, file)
        traced = layers.compare_layers(folded, None, trace, layers.probes(whole))
    misses = (
        *parity.file_misses(found, exact, program_macs(folded)),
        *parity.finite_misses(answers),
        *parity.output_misses(compared, parity.widened(form.limits, rounding)),
        *parity.layer_misses(traced, learned_scales(folded)[0]),
    )
    seen = _parity(
        compared, rounding, traced, misses, _count(gates), _count(with_calibration(whole))
    )
    ports = module.interface(file)
    own = {name: expected[name] for name in context.dataset.tests}
    return VerifyFacts(
        runtime=form.runtime,
        evaluated=module.evaluated(),
        ops=found.ops,
        partitions=found.partitions,
        outside=_outside(found, folded),
        takes=_takes(ports.input, whole, pixels=context.recipe.target.takes_pixels),
        gives=_gives(ports.output, context),
        int8_coverage=found.int8_coverage,
        scales_exact=exact,
        parity=seen,
        agreement=context.task.compare(there, own, None).share,
        agreement_images=_count(tests_of(context, gates)),
        figure=first_figure(context.task.accuracies(logits, context.dataset)),
        golden=_golden(context, file, whole, logits, seen, step),
    )


def _golden(
    context: Context,
    file: Path,
    whole: Dataset,
    logits: Mapping[str, Tensor],
    seen: Parity,
    step: float | None,
) -> tuple[int, ...]:
    """Rows of the images that a bundle holds; the file computes what known faults make of them."""
    task, form = context.task, format_of(context)
    name, images = next(iter(whole.tests.items()))
    rows = golden.candidates(task, images)
    answers = logits[name][rows]

    def given(places: Tensor) -> Tensor:
        pixels = images.pixels(rows[places])
        takes_pixels = context.recipe.target.takes_pixels
        return pixels.float() if takes_pixels else normalize(pixels, whole.mean, whole.std)

    moved = None
    if context.recipe.target.precision == "int8":
        moved = golden.moved_by_faults(form, file, answers, given, link_of(context.recipe))
    allowed, _ = golden.tolerance(form, seen, step, answers)
    return tuple(rows[golden.chosen(task, answers, allowed, moved)].tolist())


def _parity(
    compared: parity.Compared,
    rounding: OutputSteps | None,
    traced: list[layers.LayerSums],
    misses: tuple[str, ...],
    images: int,
    available: int,
) -> Parity:
    from pipeline.measure import parity

    first = parity.describe_first_difference(traced) if misses and traced else None
    return Parity(
        images=images,
        available=available,
        agreement=compared.results.share,
        steps=compared.steps,
        difference=compared.difference,
        rounding=rounding,
        layers=len(traced),
        layers_alike=sum(not layer.at_fault for layer in traced),
        misses=misses,
        first_difference=first,
        passed=not misses,
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
    from pipeline.measure import layers

    titles = {layer.name: layer.title for layer in layers.layers_of(folded)}
    return tuple(f"{titles.get(name, name)}, {why}" for name, why in found.outside.items())


@span("compare", "answers")
def _answers(context: Context, file: Path, whole: Dataset, gates: Dataset) -> dict[str, Tensor]:
    """What the file answers to all test images, and to the calibration images of the gates."""
    asked = with_calibration(replace(whole, calibration=gates.calibration))
    with context.tracked("run the file", _count(asked)) as advance:
        return answers_to_tests(
            LANES[HOST],
            model_file(context, file),
            asked,
            context.recipe.threads,
            lambda done: advance(done, ""),
        )


def _sampled(context: Context, answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The answers to the images of the gates, of those that `_answers` has."""
    most, tests = context.recipe.verify.images, context.dataset.tests
    rows = {name: sample_rows(images, most) for name, images in tests.items()}
    return {name: found[rows[name]] if name in rows else found for name, found in answers.items()}


def _count(dataset: Dataset) -> int:
    """Images of all test sets."""
    return sum(len(images) for images in dataset.tests.values())


STAGE = Stage(
    name="verify",
    make=verify,
    facts=VerifyFacts,
    after=("export", "fold", "judge_fold"),
    reads=("task", "target.format", "target.input", "target.output", "threads", "verify.images"),
    code=(
        *CORE,
        *COMPARING,
        *LANE,
        "formats",
        "stages/exported.py",
        "stages/golden.py",
        "stages/verify.py",
    ),
    packages=(*IMAGES, *QUANTIZING),
    of_format=True,
    sees_tests=True,
    on_host=True,
)
