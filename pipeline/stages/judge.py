"""The stages that judge a network on the test sets, apart from those that make it.

So no weight depends on a test set: with another one only these are made anew, and what judges the
file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import MismatchError
from pipeline.recipe.recipe import Recipe
from pipeline.stages import kept_images, prune, sparsify
from pipeline.stages.context import (
    LOGITS,
    PROGRAM,
    Context,
    Inputs,
    accuracy_of,
    first_figure,
    pruned_model,
)
from pipeline.stages.exported import for_gates, tests_of
from pipeline.stages.stage import (
    COMPARING,
    CORE,
    CUTTING,
    IMAGES,
    PRUNING,
    QUANTIZER,
    QUANTIZING,
    Stage,
    StageFacts,
)


class JudgeFacts(StageFacts):
    """The accuracy of the network that another stage left."""


def judge(stage: str, context: Context, inputs: Inputs, out: Path) -> JudgeFacts:
    """Accuracy of the network in branch form that `stage` left."""
    model = pruned_model(context, inputs, stage).eval()
    return JudgeFacts(figure=first_figure(accuracy_of(context, model, stage)))


def judge_program(context: Context, inputs: Inputs, out: Path) -> JudgeFacts:
    """Accuracy of the program, and its logits on the images of `verify`'s gates.

    Raises:
        MismatchError: a logit is not finite.
    """
    from pipeline.compress.quantization import program
    from pipeline.measure import parity, timing

    dataset = for_gates(context)
    logits = timing.program_logits(program.load(inputs["fold"] / PROGRAM), dataset)
    if misses := parity.finite_misses(logits):
        raise MismatchError(
            f"{context.recipe.name}: the folded program does not answer as the trained network "
            f"does: {'; '.join(misses)}; this is a fault of PocketNest, please report it"
        )
    torch.save(logits, out / LOGITS)
    _keep_for_debug(context, out)
    accuracies = context.task.accuracies(logits, tests_of(context, dataset))
    first, images = next(iter(context.dataset.tests.items()))
    some = len(dataset.tests[first])
    return JudgeFacts(
        figure=first_figure(accuracies), figure_images=some if some < len(images) else None
    )


def _keep_for_debug(context: Context, out: Path) -> None:
    """Keep the images that the cost of each layer is judged on, wherever the run is moved."""
    if context.recipe.target.precision == "float":
        return  # no layer of it is in int8
    images = next(iter(context.dataset.tests.values()))
    rows = kept_images.spread_rows(len(images), kept_images.MOST)
    kept = {kept_images.TEST: kept_images.kept(images, rows)}
    kept_images.write(out / kept_images.KEPT_IMAGES, kept)


def _of_weights(made: Stage[Any], needed: Callable[[Recipe], bool]) -> Stage[JudgeFacts]:
    """The stage that judges the weights of another one, for recipes that change them there."""
    return Stage(
        name=f"judge_{made.name}",
        make=partial(judge, made.name),
        facts=JudgeFacts,
        after=(made.name,),
        reads=("task", "threads"),
        code=(*CORE, *PRUNING, "stages/judge.py"),
        packages=(*IMAGES, *CUTTING),
        needed=needed,
        sees_tests=True,
        on_host=True,
        shared=True,
    )


PRUNE = _of_weights(prune.STAGE, lambda recipe: recipe.prune is not None)
SPARSIFY = _of_weights(sparsify.STAGE, sparsify.STAGE.needed)
FOLD = Stage(
    name="judge_fold",
    make=judge_program,
    facts=JudgeFacts,
    after=("fold",),
    reads=("task", "target.input", "target.precision", "threads", "verify.images"),
    code=(
        *(*CORE, *QUANTIZER, *COMPARING),
        *("stages/exported.py", "stages/judge.py", "stages/kept_images.py"),
    ),
    packages=(*IMAGES, *QUANTIZING),
    sees_tests=True,
    on_host=True,
)
JUDGES = {"prune": PRUNE, "sparsify": SPARSIFY, "fold": FOLD}
"""By the stage whose network they judge."""
