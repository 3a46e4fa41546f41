"""The stages: each a function from what went before to files in a directory and a few facts.

What a stage may read of the recipe, and the order of the stages, stand in `pipeline.run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from pipeline import layers, measure, parity, program, qat
from pipeline.console import Advance
from pipeline.data import Dataset, batches, pixel_values
from pipeline.deploy import DeployNet, Normalization, deploy_form
from pipeline.errors import MismatchError
from pipeline.fake_quantize import only_round
from pipeline.fold import float_program, float_twin, quantized_program
from pipeline.formats.export import SUFFIXES, export
from pipeline.formats.facts import scales_exact
from pipeline.models.branches import branch_form
from pipeline.models.count import count
from pipeline.models.load import build, load_checkpoint, save_checkpoint
from pipeline.models.resnest import ResNeSt
from pipeline.prune import prune_to_macs, take_shapes
from pipeline.recipe import Recipe, TrainConfig
from pipeline.records import Accuracy, Parity
from pipeline.store import Facts
from pipeline.train import EVALUATION_BATCH, Hooks, Step, device, evaluate, fit, predictions

WEIGHTS, CURVE = "weights.safetensors", "curve.json"
PROGRAM, TWIN, LOGITS = "program.pt2", "float.pt2", "logits.pt"
CALIBRATION_BATCH = 32
CALIBRATION = "(calibration)"
"""Key of the calibration images beside the test sets; no test set can be named so."""

Inputs = dict[str, Path]
"""Directory of every earlier stage's result, by the stage's name."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every stage is given besides its inputs."""

    recipe: Recipe
    dataset: Dataset
    tracked: Callable[[str, int], AbstractContextManager[Advance]]


def _first_top1(accuracy: dict[str, Accuracy]) -> float:
    return next(iter(accuracy.values())).top1


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _fit(
    context: Context,
    model: nn.Module,
    title: str,
    config: TrainConfig,
    out: Path,
    schedule: qat.Schedule | None = None,
) -> None:
    """Train with a progress bar and save the learning curve."""
    per_epoch = -(-len(context.dataset.train) // config.batch_size)
    with context.tracked(title, per_epoch * config.epochs) as advance:

        def watch(step: Step) -> None:
            phase = f"{schedule.phase}, " if schedule else ""
            advance(
                step.step,
                f"epoch {step.epoch}/{step.epochs}, {phase}loss {step.loss:.4f}, "
                f"accuracy {step.accuracy:.2%}",
            )

        hooks = Hooks(watch=watch)
        if schedule is not None:
            hooks = Hooks(
                watch=watch,
                before_step=schedule.before_step,
                set_training=schedule.set_training,
            )
        curve = fit(model, context.dataset, config, context.recipe.seed, hooks)
    _write_json(out / CURVE, curve)


def _float_model(context: Context, inputs: Inputs) -> ResNeSt:
    model = build(context.recipe.model, len(context.dataset.classes))
    load_checkpoint(model, inputs["train"] / WEIGHTS)
    return model.eval()


def _pruned_model(context: Context, inputs: Inputs) -> ResNeSt:
    model = branch_form(build(context.recipe.model, len(context.dataset.classes)).eval())
    take_shapes(model, load_file(inputs["prune"] / WEIGHTS))
    return model


def train(context: Context, inputs: Inputs, out: Path) -> Facts:
    """The float network: read from the recipe's checkpoint, or trained here."""
    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    model = build(recipe.model, len(context.dataset.classes))
    if recipe.model.checkpoint is not None:
        load_checkpoint(model, Path(recipe.model.checkpoint), context.dataset.classes)
    else:
        _fit(context, model, "train", recipe.train, out)
    save_checkpoint(model.cpu(), out / WEIGHTS, {"classes": json.dumps(context.dataset.classes)})
    return {}


def baseline(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size and latency of the float network on this machine's best device."""
    recipe, place = context.recipe, device()
    model = _float_model(context, inputs).to(place)
    accuracy = evaluate(model, context.dataset)
    counts = count(model, recipe.model.input_size)
    image = measure.first_image(context.dataset).to(place)
    timed = measure.interleaved(
        {"float": measure.float_run(model, image)},
        warmup=recipe.measure.warmup,
        rounds=recipe.measure.rounds,
        threads=recipe.target.threads,
    )
    return {
        "device_kind": "gpu" if place.type == "cuda" else "cpu",
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "latency_ms": timed["float"].model_dump(),
        "size_bytes": measure.size_bytes(inputs["train"] / WEIGHTS),
        "params": counts.params,
        "macs": counts.macs,
        "top1": _first_top1(accuracy),
    }


def prune(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Remove channels and fine-tune; without a pruning target, only take branch form."""
    recipe = context.recipe
    branched = branch_form(_float_model(context, inputs))
    difference = 0.0
    if recipe.prune is not None:
        size = recipe.model.input_size
        pruned = prune_to_macs(branched, size, recipe.prune.macs, recipe.prune.round_to)
        branched, difference = pruned.model, pruned.difference
        _write_json(out / "removed.json", pruned.removed)
        _fit(context, branched, "fine-tune", recipe.prune.finetune, out)
    save_checkpoint(branched.cpu().eval(), out / WEIGHTS, None)
    counts = count(branched, recipe.model.input_size)
    return {
        "params": counts.params,
        "macs": counts.macs,
        "masked_difference": difference,
        "top1": _first_top1(evaluate(branched, context.dataset)),
    }


def _fed(context: Context) -> Context:
    """The context with the dataset as the program and the file take it."""
    if not context.recipe.target.takes_pixels:
        return context
    return replace(context, dataset=pixel_values(context.dataset))


def _deploy_model(context: Context, inputs: Inputs) -> DeployNet:
    dataset, normalization = context.dataset, None
    if context.recipe.target.takes_pixels:
        normalization = Normalization(mean=dataset.mean, std=dataset.std)
    return deploy_form(_pruned_model(context, inputs), normalization)


def _quantized_graph(context: Context, inputs: Inputs) -> fx.GraphModule:
    return qat.prepare(_deploy_model(context, inputs), context.recipe.model.input_size)


def quantize(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Quantization-aware training from calibrated ranges; nothing for a float target."""
    recipe = context.recipe
    if recipe.target.precision == "float":
        return {}
    torch.manual_seed(recipe.seed)
    graph = _quantized_graph(context, inputs)
    fed = _fed(context)

    def calibration() -> list[Tensor]:
        dataset = fed.dataset
        return [x for x, _ in batches(dataset.calibration, CALIBRATION_BATCH, dataset)]

    qat.calibrate(graph, calibration)
    schedule = qat.Schedule(graph, recipe.qat.milestones)
    _fit(fed, graph, "quantize", recipe.qat.train, out, schedule)
    graph.cpu()
    qat.set_training(graph, False)
    qat.refuse_bad_grids(graph)
    save_checkpoint(graph.state_dict(), out / WEIGHTS, None)
    return {}


def fold(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Fold batch normalisation and write the one program that every format is made from.

    Raises:
        MismatchError: the program does not answer as the trained network does.
    """
    side = context.recipe.model.input_size
    example = torch.zeros(2, 3, side, side)
    fed = _with_calibration(_fed(context).dataset)
    trained: nn.Module
    if context.recipe.target.precision == "float":
        trained = _deploy_model(context, inputs).eval()
        expected = _calibration_logits(trained, fed)
        folded = float_program(trained, example)
    else:
        trained = _quantized_graph(context, inputs)
        qat.load_state(trained, load_file(inputs["qat"] / WEIGHTS))
        qat.set_training(trained, False)
        only_round(trained)
        expected = _calibration_logits(trained, fed)
        program.save(float_twin(trained, example), out / TWIN)
        folded = quantized_program(trained, example)
    program.save(folded, out / PROGRAM)
    logits = measure.program_logits(folded, fed)
    torch.save(logits, out / LOGITS)
    found = parity.compare_logits({CALIBRATION: logits[CALIBRATION]}, expected, _step(folded))
    if misses := parity.output_misses(found, parity.FOLDED):
        raise MismatchError(
            f"{context.recipe.name}: the folded program does not answer as the trained network "
            f"does: {'; '.join(misses)}; this is a fault of PocketNest, please report it"
        )
    return {"top1": _first_top1(measure.accuracies(logits, context.dataset))}


def _with_calibration(dataset: Dataset) -> Dataset:
    """The dataset with its calibration images as a further test set."""
    return replace(dataset, tests={**dataset.tests, CALIBRATION: dataset.calibration})


def _calibration_logits(model: nn.Module, dataset: Dataset) -> dict[str, Tensor]:
    return {CALIBRATION: predictions(model, dataset.calibration, dataset, EVALUATION_BATCH)}


def _step(folded: torch.export.ExportedProgram) -> float | None:
    """The step of the grid that a quantized program's logits lie on; None for a float one."""
    found = layers.layers_of(folded)
    return found[-1].scale if found else None


def write(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Write the target's file from the program."""
    name = context.recipe.target.format
    file = f"model{SUFFIXES[name]}"
    export(inputs["fold"] / PROGRAM, name, out / file, pixels=context.recipe.target.takes_pixels)
    return {"file": file}


def verify(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Run the exported file on all calibration and test images beside the quantized program."""
    recipe, fed = context.recipe, _with_calibration(_fed(context).dataset)
    file, form = _file(context, inputs), _format(context)
    folded = program.load(inputs["fold"] / PROGRAM)
    found = form.inspect(file)
    exact = scales_exact(folded, found)
    images = sum(len(test) for test in fed.tests.values())
    with context.tracked("run the file", images) as advance:
        runnable = form.open_file(file, recipe.threads)
        logits = measure.logits_of(runnable, fed, lambda done: advance(done, ""))
    torch.save(logits, out / LOGITS)
    expected = torch.load(inputs["fold"] / LOGITS, weights_only=True)
    compared = parity.compare_logits(logits, expected, _step(folded))
    trace = partial(form.trace, file)
    traced = layers.compare(folded, None, trace, layers.probes(fed)) if exact is not None else []
    misses = [
        *parity.file_misses(found, exact),
        *parity.output_misses(compared, parity.FILE[recipe.target.format]),
        *parity.layer_misses(traced),
    ]
    record = Parity(
        images=images,
        agreement=compared.agreement,
        steps=compared.steps,
        difference=compared.difference,
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
        "top1": _first_top1(measure.accuracies(logits, context.dataset)),
    }


def _only(logits: dict[str, Tensor], dataset: Dataset) -> dict[str, Tensor]:
    return {name: logits[name] for name in dataset.tests}


def _file(context: Context, inputs: Inputs) -> Path:
    return inputs["export"] / f"model{SUFFIXES[context.recipe.target.format]}"


def _format(context: Context) -> Any:
    # Imported late: each format loads its runtime.
    return import_module(f"pipeline.formats.{context.recipe.target.format}")


def judge(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size and latency of the exported file."""
    file = _file(context, inputs)
    logits = torch.load(inputs["verify"] / LOGITS, weights_only=True)
    accuracy = measure.accuracies(logits, context.dataset)
    why_not = _format(context).cannot_time()
    return {
        "sha256": measure.sha256_of(file),
        "size_bytes": measure.size_bytes(file),
        "download_bytes": measure.download_bytes(file),
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "cannot_time": why_not,
        "latency": _times(context, inputs) if why_not is None else {},
        "top1": _first_top1(accuracy),
    }


def _times(context: Context, inputs: Inputs) -> Facts:
    """Latencies of the float network and the file, timed in turn, by number of threads."""
    recipe, dataset = context.recipe, context.dataset
    timed = {}
    model, image = _float_model(context, inputs), measure.first_image(dataset)
    for threads in sorted({1, recipe.target.threads}):
        runnable = _format(context).open_file(_file(context, inputs), threads)
        runnable.set_input(measure.first_image(_fed(context).dataset).numpy())
        both = {"float": measure.float_run(model, image), "target": runnable.invoke}
        latencies = measure.interleaved(
            both, warmup=recipe.measure.warmup, rounds=recipe.measure.rounds, threads=threads
        )
        timed[str(threads)] = {name: taken.model_dump() for name, taken in latencies.items()}
    return timed
