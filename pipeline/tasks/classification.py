"""Classification: one class an image, the one of its largest logit.

The module of the task, as `pipeline.tasks.task.TaskModule` says: a network gives a logit for every
class, and an image's target is the number of its class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from pipeline.recipe.training import TrainConfig
from pipeline.tasks.accuracy import Accuracy, AnyAccuracy, Changes, changes_of, confusion_of
from pipeline.tasks.classified import Classified, classified
from pipeline.tasks.golden import clearest, spread, table
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import class_names, decoded_places, load_dataset
from pipeline.tasks.mixing import mixer
from pipeline.tasks.predictions import Predictions, gathered, write_named
from pipeline.tasks.ranking import first_class, ranked
from pipeline.tasks.task import Agreement, Counted, Meaning

__all__ = [
    "accuracies",
    "changes",
    "class_names",
    "compare",
    "confirms",
    "counted",
    "decoded_places",
    "gathered",
    "golden_clear",
    "golden_order",
    "golden_table",
    "keep",
    "load",
    "loss",
    "meaning",
    "mixer",
    "named",
    "outputs",
    "prediction",
    "right",
    "shares",
]

load = load_dataset
golden_order, golden_clear, golden_table = spread, clearest, table
_MEANING = Meaning(
    brief="A number for every class; softmax makes probabilities of them.",
    rule="one number per class, in the order of labels.txt; the largest names the class, the first "
    "of equal ones; softmax makes probabilities of them",
    brief_of_probabilities="The probability of every class; together they are 1.",
    rule_of_probabilities="one probability per class, in the order of labels.txt; the largest "
    "names the class, the first of equal ones; together they are 1",
)


def outputs(classes: Sequence[str]) -> tuple[str, ...]:
    """A logit for every class."""
    return tuple(classes)


def meaning() -> Meaning:
    """Logits, of which the largest names the class."""
    return _MEANING


def shares(answers: Tensor) -> Tensor:
    """Logits [N, classes] as they are: their softmax shares an image among the classes."""
    return answers


def loss(config: TrainConfig | None = None, targets: Tensor | None = None) -> nn.Module:
    """Cross entropy of logits [N, classes] with labels [N], or with shares of all classes."""
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing if config else 0.0)


def right(answers: Tensor, targets: Tensor) -> float:
    """Images whose class was found, by logits [N, classes] and labels [N]."""
    return float((first_class(answers) == targets.to(answers.device)).sum())


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Share of images whose label is the first, or among the first five, of `logits`."""
    hits = ranked(logits)[:, :5] == labels[:, None]
    return Accuracy(
        top1=float(hits[:, 0].double().mean()),
        top5=float(hits.any(1).double().mean()),
        images=len(labels),
    )


def accuracies(answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, AnyAccuracy]:
    """Accuracy by test set of `dataset`; `answers` may hold those of further images."""
    return {name: accuracy(answers[name], test.labels) for name, test in dataset.tests.items()}


def compare(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: float | None
) -> Agreement:
    """How often the same class comes first."""
    leads: list[float] = []
    images = 0
    for name, logits in wanted.items():
        first, other = first_class(logits), first_class(found[name])
        rows = (first != other).nonzero().flatten()
        apart = logits[rows, first[rows]] - logits[rows, other[rows]]
        leads += [math.inf] * len(rows) if step is None else (apart / step).tolist()
        images += len(logits)
    return Agreement(
        same=f"the same {Accuracy.FIGURE}",
        unit="images",
        units=images,
        share=(images - len(leads)) / images,
        leads=tuple(leads),
    )


def named(answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """The class that is named for every test image."""
    return {name: tuple(first_class(answers[name]).tolist()) for name in dataset.tests}


def confirms(named: Sequence[int], targets: Tensor, accuracy: AnyAccuracy) -> bool:
    """Whether as many images were given their own class as an accuracy says."""
    counted = confusion_of(targets.tolist(), named)
    return counted.right / counted.images == accuracy.figure


def keep(answers: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
    """Keep which class was named for every test image."""
    write_named({name: first_class(answers[name]) for name in dataset.tests}, path)


def changes(before: Predictions, after: Predictions) -> Changes:
    """Which images one file, and another, gave their own class."""
    return changes_of(before.labels.tolist(), before.file.tolist(), after.file.tolist())


def counted(predictions: Mapping[str, Predictions]) -> Counted:
    """Which classes were named for which, and what became of the float network's right ones."""
    float_model, file, changes = {}, {}, {}
    for name, found in predictions.items():
        labels, before, after = (
            one.tolist() for one in (found.labels, found.float_model, found.file)
        )
        float_model[name] = confusion_of(labels, before)
        file[name] = confusion_of(labels, after)
        changes[name] = changes_of(labels, before, after)
    return Counted(float_model=float_model, file=file, changes=changes)


def prediction(
    image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
) -> Classified:
    """The best classes of an image."""
    return classified(image, answers, classes, top)
