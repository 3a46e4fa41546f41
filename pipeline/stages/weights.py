"""The stages that change weights: training, pruning, sparsifying, quantization-aware training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from pipeline.base import torchrun
from pipeline.base.errors import reading
from pipeline.base.store import Facts
from pipeline.base.torchrun import device
from pipeline.compress.pruning.costs import Widths
from pipeline.compress.pruning.groups import Removed
from pipeline.compress.pruning.prune import Goal, plan_of, prune_to, take_shapes
from pipeline.compress.pruning.sparsify import Sparsifier, keep_zeros, sparsity, zero_masks
from pipeline.compress.pruning.widths import choose
from pipeline.compress.quantization import qat
from pipeline.compress.training.distill import distillation
from pipeline.compress.training.loop import CURVE, Hooks, Step, fit
from pipeline.compress.training.regularize import drop_while_training
from pipeline.compress.training.resume import Saves
from pipeline.compress.training.schedule import batches_per_epoch
from pipeline.measure import timing, width_times
from pipeline.networks.checkpoints import WEIGHTS, load_checkpoint, read_checkpoint, save_checkpoint
from pipeline.networks.count import count
from pipeline.networks.hub import local_file
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.build import build
from pipeline.networks.resnest.network import ResNeSt
from pipeline.networks.sanity import refuse_dead
from pipeline.recipe.compression import PruneConfig
from pipeline.recipe.training import DistillConfig, TrainConfig
from pipeline.stages.context import (
    Context,
    Inputs,
    branched_model,
    calibrate,
    fed,
    first_top1,
    float_model,
    normalization,
    quantized_graph,
    small_model,
    write_json,
)
from pipeline.stages.times import goal_and_file, refuse_too_slow
from pipeline.tasks.classification import NAMED, accuracies, evaluate, write_named
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.images.batches import batches

AdjustLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
_IMPORTANCE_BATCH, _IMPORTANCE_MACS = 8, 1.5e11
"""Where channels are judged by gradients: images a gradient is taken of at once, and the most
multiply-accumulates of all together: 256 images of 32 x 32, 24 of 224 x 224, some ten seconds."""

Curve = list[dict[str, float]]


def _fit(
    context: Context,
    model: nn.Module,
    title: str,
    config: TrainConfig,
    hooks: Hooks,
    phase: Callable[[], str] = lambda: "",
) -> Curve:
    """Train with a progress bar, from where it was stopped; returns the learning curve."""
    saves = None
    if context.partial is not None:
        pause = context.recipe.save
        directory = context.partial / title.replace(" ", "-").replace("/", "-")
        saves = Saves(directory=directory, seconds=pause.seconds, steps=pause.steps)
    per_epoch = -(-len(context.dataset.train) // config.batch_size)
    with context.tracked(title, per_epoch * config.epochs) as advance:

        def watch(step: Step) -> None:
            advance(
                step.step,
                f"epoch {step.epoch}/{step.epochs}, {phase()}loss {step.loss:.4f}, "
                f"accuracy {step.accuracy:.2%}",
            )

        seed = context.recipe.seed
        return fit(model, context.dataset, config, seed, replace(hooks, watch=watch), saves)


def _taught(
    context: Context,
    inputs: Inputs,
    student: ResNeSt | fx.GraphModule,
    config: DistillConfig | None,
) -> AbstractContextManager[AdjustLoss]:
    """The loss with the float network's answers in it; as it is where nothing is distilled."""
    if config is None:
        return nullcontext(Hooks().adjust_loss)
    pixels = normalization(context) if isinstance(student, fx.GraphModule) else None
    return distillation(student, float_model(context, inputs), config, pixels)


def train(context: Context, inputs: Inputs, out: Path) -> Facts:
    """The float network: read from the recipe's checkpoint, trained here, or both.

    A checkpoint whose classifier is replaced gives the rest, and training goes on from there.
    """
    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    model = build(recipe.model, len(context.dataset.classes))
    replaces_head = recipe.model.head == "replace"
    if recipe.model.checkpoint is None:
        model.start_as_identity()
    else:
        given = local_file(recipe.model.checkpoint)
        load_checkpoint(model, given, context.dataset.classes, head=not replaces_head)
        refuse_dead("model.checkpoint", model, given)
    if recipe.model.checkpoint is None or replaces_head:
        drop_while_training(model, recipe.train)
        write_json(out / CURVE, _fit(context, model, "train", recipe.train, Hooks()))
    save_checkpoint(model.cpu(), out / WEIGHTS, {"classes": json.dumps(context.dataset.classes)})
    return {}


def baseline(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Accuracy, size and latency of the float network on this machine's best device."""
    recipe, place = context.recipe, device()
    model = float_model(context, inputs).to(place)
    logits = network_logits(model, context.dataset, "baseline")
    write_named(logits, context.dataset, out / NAMED)
    accuracy = accuracies(logits, context.dataset)
    counts = count(model, recipe.model.input_size)
    if not torchrun.is_first():
        return {}  # nothing else runs beside a stage that times
    image = timing.first_image(context.dataset).to(place)
    timed = timing.interleaved(
        {"float": timing.float_run(model, image)},
        warmup=recipe.measure.warmup,
        rounds=recipe.measure.rounds,
        threads=recipe.target.threads,
    )
    return {
        "device_kind": "gpu" if place.type == "cuda" else "cpu",
        "accuracy": {name: a.model_dump() for name, a in accuracy.items()},
        "latency_ms": timed["float"].model_dump(),
        "size_bytes": timing.size_bytes(inputs["train"] / WEIGHTS),
        "params": counts.params,
        "macs": counts.macs,
        "top1": first_top1(accuracy),
    }


def prune(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Remove channels and fine-tune; without a pruning target, only take branch form."""
    recipe, side = context.recipe, context.recipe.model.input_size
    model = branch_form(float_model(context, inputs))
    before = count(model, side).layers
    facts: Facts = {}
    if recipe.prune is not None:
        model, facts = _prune(context, inputs, model, recipe.prune, out)
    save_checkpoint(model.cpu().eval(), out / WEIGHTS, None)
    counts = count(model, side)
    after = {layer.name: layer.outputs for layer in counts.layers}
    return facts | {
        "layers": [
            {
                "name": layer.name,
                "kernel": "x".join(map(str, layer.kernel)),
                "before": layer.outputs,
                "after": after.get(layer.name, 0),
            }
            for layer in before
        ],
        "params": counts.params,
        "macs": counts.macs,
        "top1": first_top1(evaluate(model, context.dataset, "prune")),
    }


def _prune(
    context: Context, inputs: Inputs, model: ResNeSt, config: PruneConfig, out: Path
) -> tuple[ResNeSt, Facts]:
    """Prune in the recipe's steps, with training after each."""
    goal, file = goal_and_file(context, inputs, model)
    cuts: list[_Cut] = []
    curve: Curve = []
    for step in range(1, config.steps + 1):
        # By one process for all: another machine's times, or rounding, would give other widths.
        cut = torchrun.told_by_first(partial(_cut, context, model, config, (goal, file), step))
        model = branched_model(context)
        take_shapes(model, cut.weights)
        cuts.append(cut)
        curve += _finetune(context, inputs, model, config, step)
        model = model.cpu()
    write_json(out / "removed.json", [cut.removed for cut in cuts])
    write_json(out / CURVE, curve)
    facts = {
        "goal": goal.key,
        "asked": goal.asked,
        "limit": goal.limit,
        "whole": goal.whole,
        "predicted": goal.cost.of(cuts[-1].widths),
        "attempts": [asdict(attempt) for attempt in cuts[-1].attempts],
    }
    return model, {"masked_difference": max(cut.difference for cut in cuts), "pruning": facts}


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """A network after one step of pruning, before it is trained.

    Attributes:
        weights: its state, which has its shapes.
        widths: channels that are left, by group.
        removed: channels that went, by group.
        difference: to the masked original.
        attempts: of finding the widths by timing files.
    """

    weights: dict[str, Tensor]
    widths: Widths
    removed: Removed
    difference: float
    attempts: list[width_times.Attempt]


def _cut(
    context: Context,
    model: ResNeSt,
    config: PruneConfig,
    wanted: tuple[Goal, width_times.TimedFile | None],
    step: int,
) -> _Cut:
    """Remove the channels of one step."""
    side = context.recipe.model.input_size
    goal, file = wanted
    plan = plan_of(model, side, goal, config, partial(_labelled, context, model))
    limit = goal.after(step, config.steps)
    attempts: list[width_times.Attempt] = []
    if file is None:
        widths = choose(plan, limit, config.scope)
    else:
        timed = partial(width_times.measured_share, file)
        tried = partial(width_times.choose_in_time, plan, limit, goal.whole, config.scope, timed)
        attempts = _remembered(context, f"attempts-{step}.json", tried)
        widths = width_times.nearest(attempts, limit / goal.whole).widths
        refuse_too_slow(goal, attempts, limit)
    pruned = prune_to(model, side, plan, widths)
    return _Cut(
        weights=pruned.model.state_dict(),
        widths=widths,
        removed=pruned.removed,
        difference=pruned.difference,
        attempts=attempts,
    )


def _remembered(
    context: Context, name: str, try_them: Callable[[], list[width_times.Attempt]]
) -> list[width_times.Attempt]:
    """What was measured before this stage was stopped: another time would give other widths."""
    if context.partial is None:
        return try_them()
    file = context.partial / name
    with suppress(OSError, ValueError, TypeError):
        return [width_times.Attempt(**attempt) for attempt in json.loads(file.read_text())]
    attempts = try_them()
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".new")
    write_json(scratch, [asdict(attempt) for attempt in attempts])
    scratch.replace(file)
    return attempts


def _labelled(context: Context, model: ResNeSt) -> Iterator[tuple[Tensor, Tensor]]:
    """Images that the network was not trained on, to judge channels by."""
    dataset = context.dataset
    each = count(model, context.recipe.model.input_size).macs
    most = max(_IMPORTANCE_BATCH, int(_IMPORTANCE_MACS / each))
    images = dataset.calibration.take(torch.arange(min(most, len(dataset.calibration))))
    return batches(images, _IMPORTANCE_BATCH, dataset)


def _finetune(
    context: Context, inputs: Inputs, model: ResNeSt, config: PruneConfig, step: int
) -> Curve:
    last = step == config.steps
    shorter = {} if last else {"epochs": config.step_epochs, "warmup_epochs": 0}
    title = "fine-tune" if config.steps == 1 else f"fine-tune {step}/{config.steps}"
    with _taught(context, inputs, model, config.distill) as adjust_loss:
        finetune = config.finetune.model_copy(update=shorter)
        hooks = Hooks(part="prune.finetune", adjust_loss=adjust_loss)
        return _fit(context, model, title, finetune, hooks)


def sparsify(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Set weights to zero while training goes on."""
    config = context.recipe.sparsify
    assert config is not None
    model = branched_model(context)
    with reading(inputs["prune"] / WEIGHTS):
        take_shapes(model, read_checkpoint(inputs["prune"] / WEIGHTS))
    parts = torchrun.count() * config.train.accumulate
    steps = batches_per_epoch(len(context.dataset.train), config.train.batch_size, parts)
    sparsifier = Sparsifier(model, config, steps * config.train.epochs)
    with _taught(context, inputs, model, config.distill) as adjust_loss:
        hooks = Hooks(
            part="sparsify.train",
            before_step=sparsifier.before_step,
            after_backward=sparsifier.after_backward,
            after_step=sparsifier.after_step,
            adjust_loss=adjust_loss,
            state=sparsifier.state,
            set_state=sparsifier.set_state,
        )
        curve = _fit(context, model, "sparsify", config.train, hooks)
    sparsifier.finish()
    write_json(out / CURVE, curve)
    model = model.cpu().eval()
    save_checkpoint(model, out / WEIGHTS, None)
    return {
        "sparsity": sparsity(model),
        "left_out": list(sparsifier.left_out),
        "top1": first_top1(evaluate(model, context.dataset, "sparsify")),
    }


def quantize(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Quantization-aware training from calibrated ranges."""
    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    graph = quantized_graph(context, small_model(context, inputs))
    calibrate(context, graph)
    qat.refuse_bad_grids(graph)
    silent = qat.silent_layers(graph)
    qat.merge_rounding(graph)
    schedule = qat.Schedule(graph, recipe.qat.milestones)
    zeros = zero_masks(graph) if recipe.sparsify is not None else {}
    with _taught(context, inputs, graph, recipe.qat.distill) as adjust_loss:
        hooks = Hooks(
            part="qat.train",
            before_step=schedule.before_step,
            after_step=keep_zeros(graph, zeros),
            adjust_loss=adjust_loss,
            set_training=schedule.set_training,
            load=qat.load_state,
        )
        curve = _fit(
            fed(context), graph, "quantize", recipe.qat.train, hooks, lambda: f"{schedule.phase}, "
        )
    write_json(out / CURVE, curve)
    graph.cpu()
    qat.set_training(graph, False)
    qat.refuse_bad_grids(graph)
    save_checkpoint(graph.state_dict(), out / WEIGHTS, None)
    return {"silent": silent}
