"""The stages: each a function from what went before to files in a directory and a few facts.

What a stage may read of the recipe, and the order of the stages, stand in `pipeline.run`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from pipeline import measure, program, qat
from pipeline.console import Advance
from pipeline.data import Dataset, batches
from pipeline.deploy import deploy_form
from pipeline.fold import float_program, quantized_program
from pipeline.formats.export import SUFFIXES, export
from pipeline.formats.facts import scales_exact
from pipeline.models.branches import branch_form
from pipeline.models.count import count
from pipeline.models.load import build, load_checkpoint, save_checkpoint
from pipeline.models.resnest import ResNeSt
from pipeline.prune import prune_to_macs, take_shapes
from pipeline.recipe import Recipe, TrainConfig
from pipeline.records import Accuracy
from pipeline.store import Facts
from pipeline.train import Hooks, Step, device, evaluate, fit

WEIGHTS, CURVE, PROGRAM = "weights.safetensors", "curve.json", "program.pt2"
CALIBRATION_BATCH = 32

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


def _quantized_graph(context: Context, inputs: Inputs) -> fx.GraphModule:
    deploy = deploy_form(_pruned_model(context, inputs))
    return qat.prepare(deploy, context.recipe.model.input_size)


def quantize(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Quantization-aware training from calibrated ranges; nothing for a float target."""
    recipe = context.recipe
    if recipe.target.precision == "float":
        return {}
    torch.manual_seed(recipe.seed)
    graph = _quantized_graph(context, inputs)

    def calibration() -> list[Tensor]:
        dataset = context.dataset
        return [x for x, _ in batches(dataset.calibration, CALIBRATION_BATCH, dataset)]

    qat.calibrate(graph, calibration)
    schedule = qat.Schedule(graph, recipe.qat.milestones)
    _fit(context, graph, "quantize", recipe.qat.train, out, schedule)
    graph.cpu()
    qat.set_training(graph, False)
    qat.refuse_bad_grids(graph)
    save_checkpoint(graph.state_dict(), out / WEIGHTS, None)
    return {}


def fold(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Fold batch normalisation and write the one program that every format is made from."""
    side = context.recipe.model.input_size
    example = torch.zeros(2, 3, side, side)
    if context.recipe.target.precision == "float":
        folded = float_program(deploy_form(_pruned_model(context, inputs)), example)
    else:
        graph = _quantized_graph(context, inputs)
        qat.load_state(graph, load_file(inputs["qat"] / WEIGHTS))
        qat.set_training(graph, False)
        folded = quantized_program(graph, example)
    program.save(folded, out / PROGRAM)
    logits = measure.program_logits(folded, context.dataset)
    torch.save(logits, out / "logits.pt")
    return {"top1": _first_top1(measure.accuracies(logits, context.dataset))}


def write(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Write the target's file from the program."""
    name = context.recipe.target.format
    file = f"model{SUFFIXES[name]}"
    export(inputs["fold"] / PROGRAM, name, out / file)
    return {"file": file}


def judge(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size, operations and latency of the exported file, by reading and running it."""
    target = context.recipe.target
    file = inputs["export"] / f"model{SUFFIXES[target.format]}"
    module = import_module(f"pipeline.formats.{target.format}")
    found = module.inspect(file)
    exact = scales_exact(program.load(inputs["fold"] / PROGRAM), found)
    facts: Facts = {
        "sha256": measure.sha256_of(file),
        "size_bytes": measure.size_bytes(file),
        "download_bytes": measure.download_bytes(file),
        "ops": found.ops,
        "int8_coverage": found.int8_coverage,
        "scales_exact": exact.model_dump() if exact else None,
        "runtime": module.RUNTIME,
        "cannot_run": module.cannot_run(),
    }
    if facts["cannot_run"] is None:
        facts |= _run_file(context, inputs, file)
    return facts


def _run_file(context: Context, inputs: Inputs, file: Path) -> Facts:
    recipe, dataset = context.recipe, context.dataset
    module = import_module(f"pipeline.formats.{recipe.target.format}")
    images = sum(len(test) for test in dataset.tests.values())
    with context.tracked("run the file", images) as advance:
        runnable = module.open_file(file, recipe.threads)
        logits = measure.logits_of(runnable, dataset, lambda done: advance(done, ""))
    expected = torch.load(inputs["fold"] / "logits.pt", weights_only=True)
    accuracy = measure.accuracies(logits, dataset)
    timed = {}
    model, image = _float_model(context, inputs), measure.first_image(dataset)
    for threads in sorted({1, recipe.target.threads}):
        runnable = module.open_file(file, threads)
        runnable.set_input(image.numpy())
        both = {"float": measure.float_run(model, image), "target": runnable.invoke}
        latencies = measure.interleaved(
            both, warmup=recipe.measure.warmup, rounds=recipe.measure.rounds, threads=threads
        )
        timed[str(threads)] = {name: taken.model_dump() for name, taken in latencies.items()}
    return {
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "agreement": measure.agreement(logits, expected),
        "latency": timed,
        "top1": _first_top1(accuracy),
    }
