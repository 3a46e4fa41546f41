"""Training inside a stage: with a progress bar, and with the float network as the teacher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import fx, nn

from pipeline.compress.training.distill import AdjustLoss, distillation
from pipeline.compress.training.hooks import Hooks, Step
from pipeline.compress.training.loop import fit
from pipeline.compress.training.resume import Saves
from pipeline.recipe.training import DistillConfig, TrainConfig
from pipeline.stages.context import Context, Inputs, float_model, normalization

Curve = list[dict[str, float]]


def trained(
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
        return fit(
            model,
            context.dataset,
            config,
            seed,
            replace(hooks, watch=watch),
            saves,
            task=context.task,
        )


def taught(
    context: Context,
    inputs: Inputs,
    student: nn.Module,
    config: DistillConfig | None,
) -> AbstractContextManager[AdjustLoss]:
    """The loss with the float network's answers in it; as it is where nothing is distilled."""
    if config is None:
        return nullcontext(Hooks().adjust_loss)
    pixels = normalization(context) if isinstance(student, fx.GraphModule) else None
    teacher = float_model(context, inputs)
    stages = context.family.structure(teacher).stages
    return distillation(student, teacher, config, stages, pixels, context.task.shares)
