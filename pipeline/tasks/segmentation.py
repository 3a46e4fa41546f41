"""Segmentation: the class of every pixel, that of the largest logit there.

The task, as `pipeline.tasks.task.TaskModule` says. An image's target is a mask: the class of every
pixel, or `VOID`, which counts neither in the loss nor in the metric. What is kept of answers are
counts of pixels by image and class, and the class maps of a few images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.recipe.data import DataConfig, DigitScenesData, MaskFolderData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.task import PixelLossConfig
from pipeline.recipe.training import TrainConfig
from pipeline.tasks import class_maps
from pipeline.tasks.accuracy import AnyAccuracy, Changes
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.masks import (
    SCENE_CLASSES,
    mask_classes,
    mask_places,
    masked_dataset,
    scenes_dataset,
)
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.preparation import VOID
from pipeline.tasks.map_accuracy import MapAccuracy, map_accuracy
from pipeline.tasks.pixel_loss import PixelLoss
from pipeline.tasks.predictions import (
    NAMED,
    Predictions,
    Shown,
    kept_maps,
    read_named,
    write_named,
)
from pipeline.tasks.segmented import Segmented, segmented
from pipeline.tasks.task import Agreement, Counted, Meaning, changes_alone

if TYPE_CHECKING:
    from pipeline.tasks.task import Mix

MANY = "an image has pixels of several classes, so that it is not taken for another"
_SHOWN = 4
"""Test images whose class maps are kept, for the pictures of a report."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The task with what a recipe says of it.

    Attributes:
        stride: side of the square of pixels that an answer is for.
        of_loss: what the training minimises.
    """

    stride: int = 1
    of_loss: PixelLossConfig = field(default_factory=PixelLossConfig)

    def load(
        self, config: DataConfig, shape: InputShape, seed: int = 0, cache: Path | None = None
    ) -> Dataset:
        """Load folders of images with masks, or draw scenes."""
        if isinstance(config, DigitScenesData):
            return scenes_dataset(config, shape)
        return masked_dataset(_folders(config), shape, seed, cache)

    def class_names(self, config: DataConfig) -> tuple[str, ...]:
        """The classes, without void."""
        if isinstance(config, DigitScenesData):
            return SCENE_CLASSES
        return mask_classes(_folders(config))

    def decoded_places(self, config: DataConfig, shape: InputShape, cache: Path) -> set[Path]:
        """Where in `cache` images and masks lie decoded."""
        if isinstance(config, DigitScenesData):
            return set()
        return mask_places(_folders(config), shape, cache)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """A map of logits for every class.

        Raises:
            InputError: the recipe weighs fewer or more classes than there are.
        """
        weights = self.of_loss.class_weights
        if isinstance(weights, tuple) and len(weights) != len(classes):
            raise InputError(
                f"task.loss.class_weights: got {len(weights)} numbers; the data has "
                f"{len(classes)} classes; give one for each, or balanced"
            )
        return tuple(classes)

    def meaning(self) -> Meaning:
        """Maps of logits, of which the largest names the class of a pixel."""
        where, scaled = "pixel of the input", ""
        if self.stride > 1:
            where = f"square of {self.stride} x {self.stride} pixels of the input"
            scaled = (
                f"scale every map by {self.stride} first, bilinear, a value standing in the middle "
                "of its square; then "
            )
        return Meaning(
            brief=f"A map for every class, a number for every {where}; the largest names the "
            "class there.",
            rule=f"a map per class, in the order of labels.txt, with one number for every {where}; "
            f"{scaled}at every pixel the class of the largest number is named, the first of equal "
            "ones; softmax over the classes makes probabilities of them",
        )

    def loss(self, config: TrainConfig | None = None, targets: Tensor | None = None) -> nn.Module:
        """Cross entropy of answers [N, classes, h, w] with masks [N, H, W], and Dice beside it."""
        smoothing = config.label_smoothing if config else 0.0
        return PixelLoss(self.of_loss, self.stride, smoothing, targets)

    def shares(self, answers: Tensor) -> Tensor:
        """Logits (N * h * w, classes): every place is shared among the classes by itself."""
        return answers.movedim(1, -1).flatten(0, -2)

    def mixer(self, config: TrainConfig, outputs: int) -> Mix | None:
        """None: recipes that mix images are refused."""
        return None

    def right(self, answers: Tensor, targets: Tensor) -> float:
        """Images, each as the share of its places whose class was found.

        Of coarser answers those of the masks in the middle of their squares, which is quick.
        """
        middle = self.stride // 2
        masks = targets[:, middle :: self.stride, middle :: self.stride]
        known = masks != VOID
        hits = (answers.argmax(1) == masks.to(answers.device)) & known
        return float((hits.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)).sum())

    def accuracies(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, AnyAccuracy]:
        """Mean intersection over union by test set."""
        found: dict[str, AnyAccuracy] = {}
        for name, test in dataset.tests.items():
            accuracy = class_maps.measured(answers[name], test.labels, self.stride)
            if accuracy is None:
                raise InputError(
                    f"test set {name}: every pixel of {len(test)} masks is void, so that the "
                    "metric says nothing; correct data.void or the masks"
                )
            found[name] = accuracy
        return found

    def compare(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: float | None
    ) -> Agreement:
        """How many pixels have the same class."""
        leads: list[float] = []
        pixels = 0
        for name, logits in wanted.items():
            apart = class_maps.leads(found[name], logits, self.stride)
            leads += [math.inf] * len(apart) if step is None else [one / step for one in apart]
            pixels += len(logits) * logits[0, 0].numel() * self.stride**2
        return Agreement(
            same=f"the {MapAccuracy.SAME}",
            unit="pixels",
            units=pixels,
            share=(pixels - len(leads)) / pixels,
            leads=tuple(leads),
        )

    def named(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, tuple[Any, ...]]:
        """Of every test image, the pixels that each class was named for, and those rightly."""
        return {
            name: tuple(tuple(row) for row in self._counted(answers[name], test).tolist())
            for name, test in dataset.tests.items()
        }

    def confirms(
        self, named: Sequence[Sequence[int]], targets: Tensor, accuracy: AnyAccuracy
    ) -> bool:
        """Whether the pixels that were counted give a metric."""
        sums = torch.tensor(named).sum(0)
        classes = len(sums) // 2
        known = class_maps.pixels_of(targets, classes).sum(0).tolist()
        return accuracy == map_accuracy(
            known, sums[:classes].tolist(), sums[classes:].tolist(), len(targets)
        )

    def keep(self, answers: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
        """Keep the counts of every test image, and the class maps of a few."""
        found = {}
        for name, test in dataset.tests.items():
            found[name] = self._counted(answers[name], test)
            rows = self._shown(test)
            found[kept_maps(name)] = class_maps.class_maps(answers[name][rows], self.stride)
        write_named(found, path)

    def gathered(self, dataset: Dataset, baseline: Path, file: Path) -> dict[str, Predictions]:
        """What two stages kept."""
        float_model, exported = read_named(baseline / NAMED), read_named(file / NAMED)
        found = {}
        for name, test in dataset.tests.items():
            rows = self._shown(test)
            found[name] = Predictions(
                labels=class_maps.pixels_of(test.labels, len(dataset.classes)),
                float_model=float_model[name],
                file=exported[name],
                shown=Shown(
                    pixels=test.pixels(rows),
                    labels=test.labels[rows],
                    float_model=float_model[kept_maps(name)],
                    file=exported[kept_maps(name)],
                ),
            )
        return found

    def changes(self, before: Predictions, after: Predictions) -> Changes:
        """Of which images fewer pixels are told rightly, and of which more."""
        return _changes(before.labels, before.file, after.file)

    def counted(self, predictions: Mapping[str, Predictions]) -> Counted:
        """What became of the pixels of images; nothing of images taken for others."""
        return changes_alone(predictions, _changes, MANY)

    def prediction(
        self, image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
    ) -> Segmented:
        """The classes of an image's pixels."""
        maps = {
            name: class_maps.class_maps(found[None], self.stride)[0]
            for name, found in answers.items()
        }
        return segmented(image, maps, classes, top)

    def golden_order(self, targets: Tensor) -> Tensor:
        """A first image with each class, then a second one, and so on; then the others."""
        has = torch.stack([torch.bincount(m.flatten().int(), minlength=256) > 0 for m in targets])
        groups = [column.nonzero().flatten().tolist() for column in has[:, :VOID].unbind(1)]
        turns = [row for turn in zip_longest(*groups) for row in turn if row is not None]
        every = [*turns, *range(len(targets))]
        return torch.tensor(list(dict.fromkeys(every)), dtype=torch.int64)

    def golden_clear(self, answers: Tensor, tolerance: float) -> Tensor:
        """Rows, those first of which the fewest places can change their class."""
        best = answers.topk(2, dim=1).values
        near = (best[:, 0] - best[:, 1] <= 2 * tolerance).flatten(1).sum(1)
        return near.argsort(stable=True)

    def golden_table(
        self, answers: Tensor, targets: Sequence[Any]
    ) -> tuple[list[str], list[list[str]]]:
        """How many pixels each class is named for, of each image; the logits lie beside it."""
        maps = class_maps.class_maps(answers, self.stride)
        counts = class_maps.pixels_of(maps, answers.shape[1]).tolist()
        heads = [f"pixels_{number}" for number in range(answers.shape[1])]
        return heads, [[str(count) for count in row] for row in counts]

    def _counted(self, answers: Tensor, test: Images) -> Tensor:
        return class_maps.counted(answers, test.labels, self.stride)

    def _shown(self, test: Images) -> Tensor:
        """Rows of the test images whose maps are kept."""
        return self.golden_order(test.labels)[:_SHOWN]


def _folders(config: DataConfig) -> MaskFolderData:
    if not isinstance(config, MaskFolderData):
        raise InputError(
            "task.kind: got segmentation, which takes data.kind mask_folder or digit_scenes, not "
            f"{config.kind}"
        )
    return config


def _changes(labels: Tensor, before: Tensor, after: Tensor) -> Changes:
    """Count the images by how many of their pixels are told rightly, before and after.

    Args:
        labels: pixels of each image that have each class, [N, classes].
        before: as of `class_maps.counted`.
        after: of the same images.

    Raises:
        ValueError: they are not of the same images and classes.
    """
    if not len(labels) == len(before) == len(after) or before.shape != after.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (labels, before, after))
        raise ValueError(f"pixels of other images, or other classes: {shapes}")
    classes = before.shape[1] // 2
    first, second = (one[:, classes:].long().sum(1) for one in (before, after))
    same = first == second
    whole = same & (first == labels.long().flatten(1).sum(1))
    return Changes(
        kept=int(whole.sum()),
        lost=int((second < first).sum()),
        gained=int((second > first).sum()),
        neither=int((same & ~whole).sum()),
    )
