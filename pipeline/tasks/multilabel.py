"""Several labels an image, or none: a logit for each, whose sigmoid is its probability.

The task, as `pipeline.tasks.task.TaskModule` says. Every label is a yes or no of its own, and an
image's target is a row of 0 and 1. A label is named where its logit is above that of the threshold,
in float32: one comparison everywhere, also in the code of a bundle. On the threshold it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.recipe.data import DataConfig, ImageFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.training import TrainConfig
from pipeline.tasks.accuracy import AnyAccuracy, Changes
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.tables import label_names, labelled_dataset, labelled_places
from pipeline.tasks.label_accuracy import LabelAccuracy, mean_of
from pipeline.tasks.labelled import Labelled, labelled
from pipeline.tasks.mixing import mixer
from pipeline.tasks.precision import average_precision, micro_f1
from pipeline.tasks.predictions import Predictions, gathered, write_named
from pipeline.tasks.task import Agreement, Counted, Meaning, changes_alone

if TYPE_CHECKING:
    from pipeline.tasks.task import Mix

SEVERAL = "an image may have several labels, so that none is taken for another"


def logit_of(threshold: float) -> float:
    """The logit whose sigmoid is a probability, as the nearest float32."""
    return float(torch.tensor(math.log(threshold / (1 - threshold)), dtype=torch.float32))


class _Loss(nn.Module):
    """Binary cross entropy of logits, the mean over images and labels."""

    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Of answers (batch, labels); targets are 0, 1 or, of mixed images, between."""
        wanted = targets.to(answers.dtype) * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(answers, wanted)


@dataclass(frozen=True, kw_only=True)
class Multilabel:
    """The task with its threshold, a probability."""

    threshold: float

    def load(
        self, config: DataConfig, shape: InputShape, seed: int = 0, cache: Path | None = None
    ) -> Dataset:
        """Load folders of images with tables of their labels."""
        return labelled_dataset(_folders(config), shape, seed, cache)

    def class_names(self, config: DataConfig) -> tuple[str, ...]:
        """The labels."""
        return label_names(_folders(config))

    def decoded_places(self, config: DataConfig, shape: InputShape, cache: Path) -> set[Path]:
        """Where in `cache` the images lie decoded."""
        return labelled_places(_folders(config), shape, cache)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """A logit for every label."""
        return tuple(classes)

    def meaning(self) -> Meaning:
        """Logits of labels that do not exclude each other."""
        above = logit_of(self.threshold)
        return Meaning(
            brief="A number for every label; sigmoid makes the probability of each.",
            rule="one number per label, in the order of labels.txt; sigmoid makes the probability "
            f"of each; every label whose number is above {above:.9g}, the logit of "
            f"{self.threshold:g}, is named, any number of them or none",
            brief_of_probabilities="The probability of every label.",
            rule_of_probabilities="one probability per label, in the order of labels.txt; every "
            f"label whose probability is above {self.threshold:g} is named, any number of them or "
            "none",
            threshold=self.threshold,
            above=above,
            things=LabelAccuracy.THINGS[1],
        )

    def loss(self, config: TrainConfig | None = None, targets: Tensor | None = None) -> nn.Module:
        """Binary cross entropy of answers [N, labels] with 0 and 1, or with shares."""
        return _Loss(config.label_smoothing if config else 0.0)

    def shares(self, answers: Tensor) -> Tensor:
        """Logits (N * labels, 2) of no and yes: softmax over both makes a yes the sigmoid."""
        return torch.stack([torch.zeros_like(answers), answers], dim=-1).flatten(0, -2)

    def mixer(self, config: TrainConfig, outputs: int) -> Mix | None:
        """As of classes; a label of one of two images counts by that image's share."""
        return mixer(config, outputs)

    def right(self, answers: Tensor, targets: Tensor) -> float:
        """Images, each as the share of its labels that are told rightly."""
        return float((self._named(answers) == targets.bool()).double().mean(1).sum())

    def accuracies(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, AnyAccuracy]:
        """Mean average precision and F1 by test set."""
        return {
            name: self._accuracy(name, answers[name], test.labels)
            for name, test in dataset.tests.items()
        }

    def _accuracy(self, name: str, answers: Tensor, targets: Tensor) -> LabelAccuracy:
        columns = zip(answers.unbind(1), targets.unbind(1), strict=True)
        found = tuple(average_precision(logits, has) for logits, has in columns)
        mean = mean_of(found)
        if mean is None:
            raise InputError(
                f"test set {name}: none of {len(targets)} images has a label, so that average "
                "precision says nothing; take more images"
            )
        return LabelAccuracy(
            mean_ap=mean,
            micro_f1=micro_f1(self._named(answers), targets),
            images=len(targets),
            ap=found,
            positives=tuple(targets.long().sum(0).tolist()),
        )

    def compare(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: float | None
    ) -> Agreement:
        """How many decisions, one for every image and label, are the same."""
        leads: list[float] = []
        decisions = 0
        for name, logits in wanted.items():
            other = self._named(logits) != self._named(found[name])
            # Twice, as a lead is between two logits that move, and the threshold stays.
            apart = 2 * (logits[other] - logit_of(self.threshold)).abs()
            leads += [math.inf] * len(apart) if step is None else (apart / step).tolist()
            decisions += logits.numel()
        return Agreement(
            same=f"the {LabelAccuracy.SAME}",
            unit="decisions",
            units=decisions,
            share=(decisions - len(leads)) / decisions,
            leads=tuple(leads),
        )

    def named(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, tuple[Any, ...]]:
        """0 or 1 for every label of every test image."""
        return {
            name: tuple(tuple(row) for row in self._named(answers[name]).int().tolist())
            for name in dataset.tests
        }

    def confirms(
        self, named: Sequence[Sequence[int]], targets: Tensor, accuracy: AnyAccuracy
    ) -> bool:
        """Whether the labels that were named have the F1 of a metric."""
        said = torch.tensor(named, dtype=torch.bool)
        return isinstance(accuracy, LabelAccuracy) and accuracy.micro_f1 == micro_f1(said, targets)

    def keep(self, answers: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
        """Keep which labels were named for every test image."""
        write_named({name: self._named(answers[name]) for name in dataset.tests}, path)

    def gathered(self, dataset: Dataset, baseline: Path, file: Path) -> dict[str, Predictions]:
        """What two stages kept."""
        return gathered(dataset, baseline, file)

    def changes(self, before: Predictions, after: Predictions) -> Changes:
        """Of which images fewer labels are told rightly, and of which more."""
        return _changes(before.labels, before.file, after.file)

    def counted(self, predictions: Mapping[str, Predictions]) -> Counted:
        """What became of the labels of images; nothing of classes taken for others."""
        return changes_alone(predictions, _changes, SEVERAL)

    def prediction(
        self, image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
    ) -> Labelled:
        """The labels of an image, all that are named."""
        return labelled(image, answers, classes, self.threshold, logit_of(self.threshold))

    def golden_order(self, targets: Tensor) -> Tensor:
        """A first image with each label and one without any, then a second one, and so on."""
        groups = [column.nonzero().flatten().tolist() for column in targets.unbind(1)]
        groups.append((targets.sum(1) == 0).nonzero().flatten().tolist())
        turns = [row for turn in zip_longest(*groups) for row in turn if row is not None]
        return torch.tensor(list(dict.fromkeys(turns)), dtype=torch.int64)

    def golden_clear(self, answers: Tensor, tolerance: float) -> Tensor:
        """Rows, those first that have every logit farther from the threshold than `tolerance`."""
        near = (answers - logit_of(self.threshold)).abs().amin(1) <= tolerance
        return near.to(torch.uint8).argsort(stable=True)

    def golden_table(
        self, answers: Tensor, targets: Sequence[Sequence[int]]
    ) -> tuple[list[str], list[list[str]]]:
        """The numbers of the labels of each image, of those that are named, and the logits."""
        heads = ["label", "named", *(f"logit_{n}" for n in range(answers.shape[1]))]
        named = self._named(answers).int().tolist()
        rows = [
            [_numbers(has), _numbers(said), *(f"{value:.9g}" for value in values)]
            for has, said, values in zip(targets, named, answers.float().tolist(), strict=True)
        ]
        return heads, rows

    def _named(self, answers: Tensor) -> Tensor:
        return answers.float() > logit_of(self.threshold)


def _folders(config: DataConfig) -> ImageFolderData:
    if not isinstance(config, ImageFolderData):
        raise InputError(
            f"task.kind: got multilabel, which takes data.kind image_folder, not {config.kind}"
        )
    return config


def _changes(labels: Tensor, before: Tensor, after: Tensor) -> Changes:
    """Count the images by how many of their labels are told rightly, before and after.

    Raises:
        ValueError: they are not of the same images and labels.
    """
    if not labels.shape == before.shape == after.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (labels, before, after))
        raise ValueError(f"labels named for other images, or other labels: {shapes}")
    first, second = ((one == labels).sum(1) for one in (before, after))
    same = first == second
    whole = same & (first == labels.shape[1])
    return Changes(
        kept=int(whole.sum()),
        lost=int((second < first).sum()),
        gained=int((second > first).sum()),
        neither=int((same & ~whole).sum()),
    )


def _numbers(labels: Sequence[int]) -> str:
    return " ".join(str(number) for number, one in enumerate(labels) if one)
