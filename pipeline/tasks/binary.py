"""Yes or no: two classes, and one logit for the second of them, whose sigmoid is its probability.

The module of the task, as `pipeline.tasks.task.TaskModule` says. Everything is that of
classification with the logits (0, z) of the two classes: their softmax is (1 - sigmoid(z),
sigmoid(z)), and their cross entropy the binary cross entropy of z. An answer of 0 is a no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.recipe.training import TrainConfig
from pipeline.tasks import classification
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.classified import Classified
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.task import Agreement, Meaning

if TYPE_CHECKING:
    from pipeline.tasks.task import Mix

load, class_names, decoded_places = (
    classification.load,
    classification.class_names,
    classification.decoded_places,
)
gathered, changes, counted = (
    classification.gathered,
    classification.changes,
    classification.counted,
)
golden_order, confirms = classification.golden_order, classification.confirms

_CLASSES = 2
_MEANING = Meaning(
    brief="One number; sigmoid makes the probability of a yes of it.",
    rule="one number: above 0 it names the second class of labels.txt, else the first; sigmoid "
    "makes the probability of the second of it",
    brief_of_probabilities="The probability of a yes.",
    rule_of_probabilities="the probability of the second class of labels.txt: above 0.5 it names "
    "that class, else the first",
)


def shares(answers: Tensor) -> Tensor:
    """Logits (..., 2) of no and yes, of answers (..., 1)."""
    return torch.cat([torch.zeros_like(answers), answers], dim=-1)


def outputs(classes: Sequence[str]) -> tuple[str, ...]:
    """The logit of the second class.

    Raises:
        InputError: there are not two classes.
    """
    if len(classes) != _CLASSES:
        raise InputError(
            f"task.kind: got binary; it takes {_CLASSES} classes, and the data has {len(classes)}; "
            "take classification"
        )
    return (classes[1],)


def meaning() -> Meaning:
    """The logit of a yes."""
    return _MEANING


class _Loss(nn.Module):
    """A loss of the logits of two classes, of answers (batch, 1)."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch; targets are 0 or 1, or the shares (batch, 2) of both."""
        found: Tensor = self.loss(shares(answers), targets)
        return found


def loss(config: TrainConfig | None = None, targets: Tensor | None = None) -> nn.Module:
    """Binary cross entropy of answers [N, 1] with labels [N], or with shares of both classes."""
    return _Loss(classification.loss(config))


def mixer(config: TrainConfig, outputs: int) -> Mix | None:
    """As of two classes."""
    return classification.mixer(config, _CLASSES)


def right(answers: Tensor, targets: Tensor) -> float:
    """Images whose class was found."""
    return classification.right(shares(answers), targets)


def accuracies(answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, AnyAccuracy]:
    """Accuracy by test set."""
    return classification.accuracies(_of_both(answers), dataset)


def compare(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: float | None
) -> Agreement:
    """How often the answer is the same."""
    return classification.compare(_of_both(found), _of_both(wanted), step)


def named(answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """0 or 1 for every test image."""
    return classification.named(_of_both(answers), dataset)


def keep(answers: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
    """Keep the answer to every test image."""
    classification.keep(_of_both(answers), dataset, path)


def prediction(
    image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
) -> Classified:
    """Both classes of an image."""
    return classification.prediction(image, _of_both(answers), classes, top)


def golden_clear(answers: Tensor, tolerance: float) -> Tensor:
    """Rows of answers [N, 1], those first that are farther from 0 than twice `tolerance`."""
    return classification.golden_clear(shares(answers), tolerance)


def golden_table(answers: Tensor, targets: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """The class of each image, the class that is named, and the logit."""
    heads, rows = classification.golden_table(shares(answers), targets)
    # The logit of the first class is 0 and none of the file's.
    return heads[:-1], [[*row[:-2], row[-1]] for row in rows]


def _of_both(answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: shares(found) for name, found in answers.items()}
