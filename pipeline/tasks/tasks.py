"""The tasks. A further one is a module beside this one and an entry of `TASKS`.

TASKS["classification"].figure       # "top-1", without torch
task_of(recipe).loss(recipe.train)   # imports torch

The table lies above the recipe, whose `task.kind` is one of its keys: a recipe is given them when
it is loaded (`pipeline.recipe.known`).
"""

from __future__ import annotations

from pipeline.recipe.recipe import Recipe
from pipeline.recipe.task import THRESHOLD, TaskConfig
from pipeline.tasks.task import Task, TaskModule


def _classification(_: TaskConfig) -> TaskModule:
    from pipeline.tasks import classification

    return classification


def _binary(_: TaskConfig) -> TaskModule:
    from pipeline.tasks import binary

    return binary


def _multilabel(config: TaskConfig) -> TaskModule:
    from pipeline.tasks.multilabel import Multilabel

    return Multilabel(threshold=THRESHOLD if config.threshold is None else config.threshold)


TASKS: dict[str, Task] = {
    "classification": Task(title="image classification", figure="top-1", module=_classification),
    "binary": Task(title="yes or no, by one logit", figure="top-1", module=_binary),
    "multilabel": Task(
        title="several labels an image",
        figure="mAP",
        module=_multilabel,
        options=("threshold",),
        table=True,
    ),
}
"""By the name that `task.kind` of a recipe has."""


def task_of(recipe: Recipe) -> TaskModule:
    """The module of a recipe's task."""
    return TASKS[recipe.task.kind].module(recipe.task)
