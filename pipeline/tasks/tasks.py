"""The tasks. A further one is a module beside this one and an entry of `TASKS`.

TASKS["classification"].figure       # "top-1", without torch
task_of(recipe).loss(recipe.train)   # imports torch

The table lies above the recipe, whose `task.kind` is one of its keys: a recipe is given them when
it is loaded (`pipeline.recipe.known`).
"""

from __future__ import annotations

from pipeline.recipe.recipe import Recipe
from pipeline.recipe.task import OVERLAP, THRESHOLD, Link, PixelLossConfig, TaskConfig
from pipeline.tasks.task import Meaning, Task, TaskModule


def _classification(_: TaskConfig) -> TaskModule:
    from pipeline.tasks import classification

    return classification


def _binary(_: TaskConfig) -> TaskModule:
    from pipeline.tasks import binary

    return binary


def _multilabel(config: TaskConfig) -> TaskModule:
    from pipeline.tasks.multilabel import Multilabel

    return Multilabel(threshold=THRESHOLD if config.threshold is None else config.threshold)


def _detection(config: TaskConfig) -> TaskModule:
    from pipeline.tasks.detection import Detection

    return Detection(
        threshold=THRESHOLD if config.threshold is None else config.threshold,
        overlap=OVERLAP if config.overlap is None else config.overlap,
    )


def _segmentation(config: TaskConfig) -> TaskModule:
    from pipeline.tasks.segmentation import Segmentation

    loss = PixelLossConfig() if config.loss is None else config.loss
    return Segmentation(stride=config.stride or 1, of_loss=loss)


TASKS: dict[str, Task] = {
    "classification": Task(
        title="image classification", figure="top-1", link="softmax", module=_classification
    ),
    "binary": Task(title="yes or no, by one logit", figure="top-1", link="sigmoid", module=_binary),
    "multilabel": Task(
        title="several labels an image",
        figure="mAP",
        link="sigmoid",
        module=_multilabel,
        options=("threshold",),
        table=True,
    ),
    "detection": Task(
        title="objects and their boxes",
        figure="AP50",
        link="sigmoid",
        module=_detection,
        options=("threshold", "overlap"),
        data=("coco", "voc", "digit_scenes"),
        mixes=False,
        bundled=False,
        turns=False,
        probabilities=False,
    ),
    "segmentation": Task(
        title="the class of every pixel",
        figure="mean IoU",
        link="softmax",
        module=_segmentation,
        options=("stride", "loss"),
        data=("mask_folder", "digit_scenes"),
        mixes=False,
        probabilities=False,
        maps=True,
    ),
}
"""By the name that `task.kind` of a recipe has."""


def link_of(recipe: Recipe) -> Link | None:
    """What makes probabilities in a recipe's file; None where that gives logits."""
    return None if recipe.target.output == "logits" else TASKS[recipe.task.kind].link


def meaning_of(recipe: Recipe) -> Meaning:
    """What the numbers that a recipe's file gives say."""
    return task_of(recipe).meaning().given(recipe.target.output)


def task_of(recipe: Recipe) -> TaskModule:
    """The module of a recipe's task; the stride of maps is the network's where nothing is said."""
    config = recipe.task
    if config.stride is None:
        config = config.model_copy(update={"stride": recipe.model.answer_stride})
    return TASKS[config.kind].module(config)
