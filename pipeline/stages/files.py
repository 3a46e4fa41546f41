"""The stages that make the program and its file, and judge them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.errors import MismatchError, reading
from pipeline.base.store import Facts
from pipeline.compress.quantization import program, qat
from pipeline.compress.quantization.fake_quantize import only_round
from pipeline.compress.quantization.fold import float_program, float_twin, quantized_program
from pipeline.compress.quantization.other_rounding import rounded_otherwise
from pipeline.formats import format
from pipeline.formats.description import Description
from pipeline.formats.file_facts import scales_exact
from pipeline.formats.write import SUFFIXES, export
from pipeline.measure import layers, parity, timing
from pipeline.measure.parity_record import OutputSteps, Parity
from pipeline.networks.checkpoints import WEIGHTS, read_checkpoint
from pipeline.stages.context import (
    LOGITS,
    PROGRAM,
    TWIN,
    Context,
    Inputs,
    deployed,
    fed,
    first_top1,
    float_model,
    quantized_graph,
    small_model,
)
from pipeline.stages.times import unpruned_file
from pipeline.tasks.classification import NAMED, accuracies, write_named
from pipeline.tasks.evaluation import predictions
from pipeline.tasks.images.dataset import Dataset

DESCRIPTION = "description.json"
CALIBRATION = "(calibration)"
"""Key of the calibration images beside the test sets; no test set can be named so."""


def fold(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Fold batch normalisation and write the one program that every format is made from.

    Raises:
        MismatchError: the program does not answer as the trained network does.
    """
    side = context.recipe.model.input_size
    example = torch.zeros(2, 3, side, side)
    dataset = _with_calibration(fed(context).dataset)
    small = small_model(context, inputs)
    trained: nn.Module
    if context.recipe.target.precision == "float":
        trained = deployed(context, small).eval()
        expected = _calibration_logits(trained, dataset)
        folded = float_program(trained, example)
    else:
        trained = quantized_graph(context, small)
        with reading(inputs["qat"] / WEIGHTS):
            qat.load_state(trained, read_checkpoint(inputs["qat"] / WEIGHTS))
        qat.set_training(trained, False)
        only_round(trained)
        expected = _calibration_logits(trained, dataset)
        program.save(float_twin(trained, example), out / TWIN)
        folded = quantized_program(trained, example)
    program.save(folded, out / PROGRAM)
    logits = timing.program_logits(folded, dataset)
    torch.save(logits, out / LOGITS)
    found = parity.compare_logits({CALIBRATION: logits[CALIBRATION]}, expected, _step(folded))
    misses = [*parity.finite_misses(logits), *parity.output_misses(found, parity.FOLDED)]
    if misses:
        raise MismatchError(
            f"{context.recipe.name}: the folded program does not answer as the trained network "
            f"does: {'; '.join(misses)}; this is a fault of PocketNest, please report it"
        )
    return {"top1": first_top1(accuracies(logits, context.dataset))}


def _with_calibration(dataset: Dataset) -> Dataset:
    """The dataset with its calibration images as a further test set."""
    return replace(dataset, tests={**dataset.tests, CALIBRATION: dataset.calibration})


def _calibration_logits(model: nn.Module, dataset: Dataset) -> dict[str, Tensor]:
    return {CALIBRATION: predictions(model, dataset.calibration, dataset)}


def _step(folded: torch.export.ExportedProgram) -> float | None:
    """The step of the grid that a quantized program's logits lie on; None for a float one."""
    found = layers.layers_of(folded)
    return found[-1].scale if found else None


def write(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Write the target's file from the program."""
    name = context.recipe.target.format
    file = f"model{SUFFIXES[name]}"
    description(context).write(out / DESCRIPTION)
    export(
        inputs["fold"] / PROGRAM,
        name,
        out / file,
        pixels=context.recipe.target.takes_pixels,
        sparse=context.recipe.sparsify is not None,
        amx=context.recipe.target.cpu == "x86_amx",
        description=out / DESCRIPTION,
        children=context.children,
    )
    return {"file": file}


def description(context: Context) -> Description:
    """What the target's file is to say of itself."""
    recipe, dataset = context.recipe, context.dataset
    side = recipe.model.input_size
    classes = f"{len(dataset.classes)} classes of {dataset.name}"
    return Description(
        name=recipe.model.name,
        text=recipe.card.intended_use
        or f"{recipe.model.name}, {recipe.target.precision}: {side} x {side} images, {classes}",
        classes=dataset.classes,
        pixels=recipe.target.takes_pixels,
        mean=dataset.mean,
        std=dataset.std,
        author=recipe.card.author,
        licence=recipe.card.licence,
    )


def verify(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Run the exported file on all calibration and test images beside the quantized program."""
    recipe, dataset = context.recipe, _with_calibration(fed(context).dataset)
    file, form = _file(context, inputs), _format(context)
    folded = program.load(inputs["fold"] / PROGRAM)
    found = form.inspect(file)
    exact = scales_exact(folded, found)
    images = sum(len(test) for test in dataset.tests.values())
    with context.tracked("run the file", images) as advance:
        runnable = form.open_file(file, recipe.threads)
        logits = timing.logits_of(runnable, dataset, lambda done: advance(done, ""))
    torch.save(logits, out / LOGITS)
    with reading(inputs["fold"] / LOGITS):
        expected = torch.load(inputs["fold"] / LOGITS, weights_only=True)
    limits = format.FILE[recipe.target.format]
    compared = parity.compare_logits(logits, expected, _step(folded))
    rounding = _rounding(folded, dataset, expected, limits.epsilon)
    trace = partial(form.trace, file)
    traced = (
        layers.compare(folded, None, trace, layers.probes(dataset)) if exact is not None else []
    )
    misses = [
        *parity.file_misses(found, exact),
        *parity.finite_misses(logits),
        *parity.output_misses(compared, parity.widened(limits, rounding)),
        *parity.layer_misses(traced),
    ]
    record = Parity(
        images=images,
        agreement=compared.agreement,
        steps=compared.steps,
        difference=compared.difference,
        rounding=rounding,
        layers=len(traced),
        layers_alike=sum(not layer.at_fault for layer in traced),
        misses=tuple(misses),
        first_difference=parity.describe_first_difference(traced) if misses and traced else None,
        passed=not misses,
    )
    return {
        "runtime": form.RUNTIME,
        "evaluated": form.evaluated(),
        "ops": found.ops,
        "partitions": found.partitions,
        "int8_coverage": found.int8_coverage,
        "scales_exact": exact.model_dump() if exact else None,
        "parity": record.model_dump(),
        "agreement": parity.agreement(logits, _only(expected, context.dataset)),
        "top1": first_top1(accuracies(logits, context.dataset)),
    }


def _rounding(
    folded: torch.export.ExportedProgram,
    dataset: Dataset,
    expected: dict[str, Tensor],
    epsilon: float,
) -> OutputSteps | None:
    """How far the calibration images' logits move when a program rounds otherwise."""
    step = _step(folded)
    if step is None:
        return None
    answers = rounded_otherwise(folded, epsilon)
    moved = {CALIBRATION: predictions(answers, dataset.tests[CALIBRATION], dataset)}
    return parity.output_steps(moved, {CALIBRATION: expected[CALIBRATION]}, step)


def _only(logits: dict[str, Tensor], dataset: Dataset) -> dict[str, Tensor]:
    return {name: logits[name] for name in dataset.tests}


def _file(context: Context, inputs: Inputs) -> Path:
    return inputs["export"] / f"model{SUFFIXES[context.recipe.target.format]}"


def _format(context: Context) -> Any:
    # Imported late: each format loads its runtime.
    return import_module(f"pipeline.formats.{context.recipe.target.format}.file")


def judge(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size and latency of the exported file."""
    file = _file(context, inputs)
    with reading(inputs["verify"] / LOGITS):
        logits = torch.load(inputs["verify"] / LOGITS, weights_only=True)
    accuracy = accuracies(logits, context.dataset)
    write_named(logits, context.dataset, out / NAMED)
    why_not = _format(context).cannot_time()
    return {
        "sha256": timing.sha256_of(file),
        "size_bytes": timing.size_bytes(file),
        "download_bytes": timing.download_bytes(file),
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "cannot_time": why_not,
        "latency": _times(context, inputs) if why_not is None else {},
        "beside_unpruned": _beside_unpruned(context, inputs) if "times" in inputs else {},
        "top1": first_top1(accuracy),
    }


def _times(context: Context, inputs: Inputs) -> Facts:
    """Latencies of the float network and the file, timed in turn, by number of threads."""
    recipe = context.recipe
    image = timing.first_image(context.dataset)
    float_run = timing.float_run(float_model(context, inputs), image)
    timed = {}
    for threads in sorted({1, recipe.target.threads}):
        both = {"float": float_run, "target": _run_of(context, _file(context, inputs), threads)}
        taken = timing.interleaved(
            both, warmup=recipe.measure.warmup, rounds=recipe.measure.rounds, threads=threads
        )
        timed[str(threads)] = {name: latency.model_dump() for name, latency in taken.items()}
    return timed


def _beside_unpruned(context: Context, inputs: Inputs) -> Facts:
    """Latencies of the file and that of the unpruned network, timed in turn.

    Without the float network between them: its weights would push both files' out of the caches,
    and the file that runs after it would pay for that.
    """
    threads = context.recipe.target.threads
    files = {"target": _file(context, inputs), "unpruned": unpruned_file(context, inputs)}
    runs = {name: _run_of(context, file, threads) for name, file in files.items()}
    taken = timing.compared(runs, rounds=context.recipe.measure.rounds, threads=threads)
    return {name: latency.model_dump() for name, latency in taken.items()}


def _run_of(context: Context, file: Path, threads: int) -> Callable[[], object]:
    """One run of a file on a test image."""
    runnable = _format(context).open_file(file, threads)
    runnable.set_input(timing.first_image(fed(context).dataset).numpy())
    run: Callable[[], object] = runnable.invoke
    return run
