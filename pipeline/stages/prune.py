"""The stage that removes channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.base import torchrun
from pipeline.base.passing import is_passing
from pipeline.base.record import Count, Record
from pipeline.base.safe_files import json_of
from pipeline.compress.pruning.kept import BY_NORM, Kept, by_reason
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.loop import CURVE
from pipeline.measure.attempt import Attempt
from pipeline.networks.checkpoints import WEIGHTS, save_checkpoint
from pipeline.networks.count import count
from pipeline.networks.layer_width import LayerWidth
from pipeline.recipe.compression import PruneConfig, PruneTarget
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import Context, Inputs, branched_model, float_model, write_json
from pipeline.stages.fitting import Curve, taught, trained
from pipeline.stages.stage import CORE, CUTTING, GOALS, IMAGES, PRUNING, Stage, StageFacts
from pipeline.stages.times import goal_and_file, refuse_too_slow
from pipeline.tasks.images.batches import batches

if TYPE_CHECKING:
    from pipeline.compress.pruning.costs import Widths
    from pipeline.compress.pruning.groups import Removed
    from pipeline.compress.pruning.prune import Goal
    from pipeline.measure import width_times

_IMPORTANCE_BATCH, _IMPORTANCE_MACS = 8, 1.5e11
"""Where channels are judged by gradients: images a gradient is taken of at once, and the most
multiply-accumulates of all together: 256 images of 32 x 32, 24 of 224 x 224, some ten seconds."""


class GoalFacts(Record):
    """What the pruning was to reach, and what the widths that were chosen are predicted to.

    Attributes:
        key: what was to become smaller.
        asked: by the recipe.
        limit: for the prediction.
        whole: that of the unpruned network.
        predicted: that of the pruned one.
        attempts: files that were timed for it; none where the goal is no time.
        kept: layers whose channels all stay, and why.
        by_norm: groups that were judged by the norm of their weights, since the recipe's criterion
            says nothing of them.
    """

    key: PruneTarget
    asked: float
    limit: float
    whole: float
    predicted: float
    attempts: tuple[Attempt, ...]
    kept: tuple[Kept, ...]
    by_norm: tuple[str, ...]

    def told(self) -> list[str]:
        """What was found out on the way, for the terminal."""
        parts = []
        if self.attempts:
            share = self.attempts[-1].measured
            parts.append(f"time of a file {share:.3f} of the unpruned one's")
        if self.by_norm:
            parts.append(f"{len(self.by_norm)} groups judged by {BY_NORM}")
        return parts + [f"not pruned: {told}" for told in by_reason(self.kept)]


class PruneFacts(StageFacts):
    """The network in prunable form, as pruning left it.

    Attributes:
        layers: widths before and after.
        masked_difference: largest difference of a logit to the network with the channels masked;
            None where nothing was pruned.
        goal: None where nothing was pruned.
    """

    layers: tuple[LayerWidth, ...]
    masked_difference: float | None
    goal: GoalFacts | None
    params: Count
    macs: Count

    def details(self) -> list[str]:
        """What was found out on the way to the goal."""
        return self.goal.told() if self.goal else []


def prune(context: Context, inputs: Inputs, out: Path) -> PruneFacts:
    """Remove channels and fine-tune; without a pruning target, only take prunable form."""
    recipe, shape = context.recipe, context.recipe.model.input_shape
    model: nn.Module = context.family.prunable(float_model(context, inputs))
    before = count(model, shape).layers
    goal, difference = None, None
    if recipe.prune is not None:
        model, goal, difference = _prune(context, inputs, model, recipe.prune, out)
    save_checkpoint(model.cpu().eval(), out / WEIGHTS, None)
    counts = count(model, shape)
    after = {layer.name: layer.outputs for layer in counts.layers}
    return PruneFacts(
        layers=tuple(
            LayerWidth(
                name=layer.name,
                kernel="x".join(map(str, layer.kernel)),
                before=layer.outputs,
                after=after.get(layer.name, 0),
            )
            for layer in before
        ),
        masked_difference=difference,
        goal=goal,
        params=counts.params,
        macs=counts.macs,
    )


def _prune(
    context: Context, inputs: Inputs, model: nn.Module, config: PruneConfig, out: Path
) -> tuple[nn.Module, GoalFacts, float]:
    """Prune in the recipe's steps, with training after each."""
    from pipeline.compress.pruning.prune import take_shapes

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
    facts = GoalFacts(
        key=goal.key,
        asked=goal.asked,
        limit=goal.limit,
        whole=goal.whole,
        predicted=goal.cost.of(cuts[-1].widths),
        attempts=tuple(cuts[-1].attempts),
        kept=goal.kept,
        by_norm=cuts[-1].by_norm,
    )
    return model, facts, max(cut.difference for cut in cuts)


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """A network after one step of pruning, before it is trained.

    Attributes:
        weights: its state, which has its shapes.
        widths: channels that are left, by group.
        removed: channels that went, by group.
        difference: to the masked original.
        attempts: of finding the widths by timing files.
        by_norm: groups judged by norm.
    """

    weights: dict[str, Tensor]
    widths: Widths
    removed: Removed
    difference: float
    attempts: list[Attempt]
    by_norm: tuple[str, ...]


def _cut(
    context: Context,
    model: nn.Module,
    config: PruneConfig,
    wanted: tuple[Goal, width_times.TimedFile | None],
    step: int,
) -> _Cut:
    """Remove the channels of one step."""
    from pipeline.compress.pruning.prune import plan_of, prune_to
    from pipeline.compress.pruning.widths import choose
    from pipeline.measure import width_times

    shape = context.recipe.model.input_shape
    goal, file = wanted
    images = partial(_judged_images, context, model)
    plan = plan_of(model, shape, context.family.structure(model), goal, config, images)
    limit = goal.after(step, config.steps)
    attempts: list[Attempt] = []
    if file is None:
        widths = choose(plan, limit, config.scope)
    else:
        timed = partial(width_times.measured_share, file)
        tried = partial(width_times.choose_in_time, plan, limit, goal.whole, config.scope, timed)
        attempts = _remembered(context, f"attempts-{step}.json", tried)
        widths = width_times.nearest(attempts, limit / goal.whole).widths
        refuse_too_slow(goal, attempts, limit)
    pruned = prune_to(model, shape, plan, widths)
    return _Cut(
        weights=pruned.model.state_dict(),
        widths=widths,
        removed=pruned.removed,
        difference=pruned.difference,
        attempts=attempts,
        by_norm=tuple(sorted(plan.by_norm)),
    )


def _remembered(
    context: Context, name: str, try_them: Callable[[], list[Attempt]]
) -> list[Attempt]:
    """What was measured before this stage was stopped: another time would give other widths."""
    if context.partial is None:
        return try_them()
    file = context.partial / name
    try:
        return [Attempt(**attempt) for attempt in json_of(file)]
    except (OSError, ValueError, TypeError) as error:
        if is_passing(error):  # what was measured stays, and is read another time
            raise
    attempts = try_them()
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".new")
    write_json(scratch, [asdict(attempt) for attempt in attempts])
    scratch.replace(file)
    return attempts


def _judged_images(
    context: Context, model: nn.Module
) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Images that the network was not trained on, to judge channels by."""
    dataset = context.dataset
    loss = context.task.loss(targets=dataset.train.labels)
    each = count(model, context.recipe.model.input_shape).macs
    most = max(_IMPORTANCE_BATCH, int(_IMPORTANCE_MACS / each))
    images = dataset.calibration.take(torch.arange(min(most, len(dataset.calibration))))
    for x, targets in batches(images, _IMPORTANCE_BATCH, dataset):
        yield x, partial(_loss_of, loss, targets)


def _loss_of(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor, answers: Tensor) -> Tensor:
    return loss(answers, targets.to(answers.device))


def _finetune(
    context: Context, inputs: Inputs, model: nn.Module, config: PruneConfig, step: int
) -> Curve:
    last = step == config.steps
    shorter = {} if last else {"epochs": config.step_epochs, "warmup_epochs": 0}
    title = "fine-tune" if config.steps == 1 else f"fine-tune {step}/{config.steps}"
    with taught(context, inputs, model, config.distill) as adjust_loss:
        finetune = config.finetune.model_copy(update=shorter)
        hooks = Hooks(part="prune.finetune", adjust_loss=adjust_loss)
        return trained(context, model, title, finetune, hooks)


def _also_reads(recipe: Recipe) -> tuple[str, ...]:
    """How large a file is depends on what file it is; MACs and parameters do not."""
    if recipe.prune is None or recipe.prune.size_mb is None:
        return ()
    return ("target.format", "target.precision", "qat.float")


STAGE = Stage(
    name="prune",
    make=prune,
    facts=PruneFacts,
    after=("train", "times"),
    reads=("prune", "seed", "threads"),
    also_reads=_also_reads,
    code=(*CORE, *PRUNING, *GOALS, "stages/fitting.py", "stages/prune.py"),
    packages=(*IMAGES, *CUTTING),
    in_bfloat16=lambda recipe: (
        recipe.prune is not None and recipe.prune.finetune.precision == "auto"
    ),
    on_device=True,
    shared=True,
)
