"""Objects in images: maps of raw numbers, of which `box_code` makes boxes, scores and classes.

The task, as `pipeline.tasks.task.TaskModule` says. A network answers with maps (images,
1 + 4 + classes, height, width): for every place of a grid whether there is an object, its box and
its class. An image's target is its objects (`pipeline.tasks.images.boxes`). What is made of the
maps is no part of a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.recipe.data import CocoData, DataConfig, DigitScenesData, VocData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.training import TrainConfig
from pipeline.tasks.accuracy import AnyAccuracy, Changes
from pipeline.tasks.box_accuracy import BoxAccuracy
from pipeline.tasks.box_code import CLASSES
from pipeline.tasks.box_decisions import Decisions, apart, decisions
from pipeline.tasks.box_loss import BoxLoss, hits
from pipeline.tasks.box_precision import precisions
from pipeline.tasks.detected import Detected, detected
from pipeline.tasks.found import found_in, objects_found, rows_of
from pipeline.tasks.images.boxed import (
    box_classes,
    box_places,
    boxes_dataset,
    scene_boxes_dataset,
)
from pipeline.tasks.images.boxes import CLASS, counted, there
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.digits import DIGITS
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.predictions import (
    NAMED,
    Predictions,
    Shown,
    gathered,
    kept_maps,
    read_named,
    write_named,
)
from pipeline.tasks.task import Agreement, Counted, Meaning, changes_alone

if TYPE_CHECKING:
    from pipeline.tasks.task import Mix

BOXES = "boxes and no classes are told of an image, so that none is taken for another"
LEAST = 0.01
"""Score from which on a box counts for average precision."""
_SHOWN = 3
"""Images of a test set that are drawn."""
OUTPUTS = ("object", "x", "y", "width", "height")
"""Names of the numbers of a place, before those of the classes."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The task.

    Attributes:
        threshold: score from which on a box is told of.
        overlap: of two boxes of a class, from which on the worse one goes.
    """

    threshold: float
    overlap: float

    def load(
        self, config: DataConfig, shape: InputShape, seed: int = 0, cache: Path | None = None
    ) -> Dataset:
        """Load folders of images with annotations of their objects, or scenes of digits."""
        if isinstance(config, DigitScenesData):
            return scene_boxes_dataset(config, shape)
        return boxes_dataset(_boxes(config), shape, seed, cache)

    def class_names(self, config: DataConfig) -> tuple[str, ...]:
        """The classes."""
        if isinstance(config, DigitScenesData):
            return DIGITS
        return box_classes(_boxes(config))

    def decoded_places(self, config: DataConfig, shape: InputShape, cache: Path) -> set[Path]:
        """Where in `cache` the images lie decoded."""
        if isinstance(config, DigitScenesData):
            return set()
        return box_places(_boxes(config), shape, cache)

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Whether there is an object at a place, its box, and a logit for every class."""
        return (*OUTPUTS, *classes)

    def meaning(self) -> Meaning:
        """Raw maps, and what boxes are made of them by."""
        return Meaning(
            brief="Raw numbers of a grid over the image: object, box (x, y, width, height), "
            "classes. boxes.py makes boxes of them.",
            rule="raw numbers for every place (row, column) of a grid of H rows and W columns over "
            "the image, channels o, x, y, w, h and one c per class, in the order of labels.txt: "
            "score = sigmoid(o)^0.6 * max(softmax(c))^0.4; middle of the box = ((column + tanh(x)) "
            "/ W, (row + tanh(y)) / H); its sides = (sigmoid(w), sigmoid(h)), all shares of the "
            f"image; of two boxes of a class that overlap by more than {self.overlap:g} (area in "
            "common of the area of both) the one with the lower score goes; boxes of a score of at "
            f"least {self.threshold:g} are told of",
        )

    def loss(self, config: TrainConfig | None = None, targets: Tensor | None = None) -> nn.Module:
        """Of boxes, objects and classes; see `BoxLoss`."""
        return BoxLoss(config.label_smoothing if config else 0.0)

    def shares(self, answers: Tensor) -> Tensor:
        """Logits (N * places, 1 + classes) of no object and of one of each class.

        softmax(0, o + log softmax(c)) is 1 - sigmoid(o), sigmoid(o) * softmax(c).
        """
        objects = answers[:, :1] + answers[:, CLASSES].log_softmax(1)
        whole = torch.cat([torch.zeros_like(objects[:, :1]), objects], 1)
        return whole.movedim(1, -1).flatten(0, -2)

    def mixer(self, config: TrainConfig, outputs: int) -> Mix | None:
        """None: boxes would not follow."""
        return None

    def right(self, answers: Tensor, targets: Tensor) -> float:
        """Images, each as the share of its objects that the place of their middle finds."""
        return hits(answers, targets)

    def accuracies(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, AnyAccuracy]:
        """Average precision by test set."""
        return {
            name: self._accuracy(name, answers[name], test.labels)
            for name, test in dataset.tests.items()
        }

    def _accuracy(self, name: str, answers: Tensor, targets: Tensor) -> BoxAccuracy:
        classes = answers.shape[1] - len(OUTPUTS)
        found = found_in(answers, LEAST, self.overlap)
        precision = precisions(found, targets, classes)
        if precision is None:
            raise InputError(
                f"test set {name}: none of {len(targets)} images has an object, so that average "
                "precision says nothing; take more images"
            )
        flags = objects_found([one.above(self.threshold) for one in found], targets)
        numbers = targets[..., CLASS][counted(targets)].long()
        return BoxAccuracy(
            ap50=precision.ap50,
            ap=precision.ap,
            recall=_recall(flags, targets),
            images=len(targets),
            by_class=precision.by_class,
            objects=tuple(torch.bincount(numbers, minlength=classes).tolist()),
        )

    def compare(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: float | None
    ) -> Agreement:
        """How many boxes are the same: of one class, at the same place, and overlapping by half.

        Each place is looked at before boxes that overlap are removed: what removes them is the same
        code for all, and moves by a whole box where two scores are nearly equal.
        """
        leads: list[float] = []
        boxes = 0
        for name, maps in wanted.items():
            whole, seen = (self._decided(one) for one in (maps, found[name]))
            either = (whole.classes >= 0) | (seen.classes >= 0)
            other = apart(whole, seen, maps.float(), found[name].float())
            boxes += int(either.sum())
            far = other[other > 0]
            leads += [math.inf] * len(far) if step is None else (far / step).tolist()
        share = (boxes - len(leads)) / boxes if boxes else 1.0
        return Agreement(
            same=f"the {BoxAccuracy.SAME}",
            unit="boxes",
            units=max(boxes, 1),
            share=share,
            leads=tuple(leads),
        )

    def named(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, tuple[Any, ...]]:
        """1 for every object of a test image that is found, else 0."""
        return {
            name: tuple(tuple(row) for row in self._flags(answers[name], test.labels).tolist())
            for name, test in dataset.tests.items()
        }

    def confirms(
        self, named: Sequence[Sequence[int]], targets: Tensor, accuracy: AnyAccuracy
    ) -> bool:
        """Whether the objects that were found are as many as a metric says."""
        flags = torch.tensor(named, dtype=torch.uint8)
        if not isinstance(accuracy, BoxAccuracy) or flags.shape != targets.shape[:2]:
            return False
        return accuracy.recall == _recall(flags, targets)

    def keep(self, answers: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
        """Keep which objects of every test image were found."""
        kept = {}
        for name, test in dataset.tests.items():
            kept[name] = self._flags(answers[name], test.labels)
            drawn = found_in(answers[name][shown_rows(test)], self.threshold, self.overlap)
            kept[kept_maps(name)] = rows_of(drawn)
        write_named(kept, path)

    def gathered(self, dataset: Dataset, baseline: Path, file: Path) -> dict[str, Predictions]:
        """What two stages kept."""
        objects = {name: counted(images.labels) for name, images in dataset.tests.items()}
        float_model, exported = read_named(baseline / NAMED), read_named(file / NAMED)
        return {
            name: replace(
                found,
                shown=Shown(
                    pixels=dataset.tests[name].pixels(shown_rows(dataset.tests[name])),
                    labels=dataset.tests[name].labels[shown_rows(dataset.tests[name])],
                    float_model=float_model[kept_maps(name)],
                    file=exported[kept_maps(name)],
                ),
            )
            for name, found in gathered(dataset, baseline, file, objects).items()
        }

    def changes(self, before: Predictions, after: Predictions) -> Changes:
        """Of which images fewer objects are found, and of which more."""
        return _changes(before.labels, before.file, after.file)

    def counted(self, predictions: Mapping[str, Predictions]) -> Counted:
        """What became of the objects of images; nothing of classes taken for others."""
        return changes_alone(predictions, _changes, BOXES)

    def prediction(
        self, image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
    ) -> Detected:
        """The boxes of an image above the threshold, at most `top`."""
        found = {
            column: found_in(maps[None], self.threshold, self.overlap)[0]
            for column, maps in answers.items()
        }
        return detected(image, found, classes, top)

    def golden_order(self, targets: Tensor) -> Tensor:
        """A first image with each class and one without objects, then a second one, and so on."""
        has = there(targets)
        most = int(targets[..., CLASS].max()) + 1
        groups = [
            ((targets[..., CLASS] == number) & has).any(1).nonzero().flatten().tolist()
            for number in range(most)
        ]
        groups.append((~has.any(1)).nonzero().flatten().tolist())
        turns = [row for turn in zip_longest(*groups) for row in turn if row is not None]
        return torch.tensor(list(dict.fromkeys(turns)), dtype=torch.int64)

    def golden_clear(self, answers: Tensor, tolerance: float) -> Tensor:
        """Rows, those first where no change of `tolerance` makes a box, takes one or renames it."""
        near = self._decided(answers).leads.flatten(1).amin(1) <= 2 * tolerance
        return near.to(torch.uint8).argsort(stable=True)

    def golden_table(
        self, answers: Tensor, targets: Sequence[Any]
    ) -> tuple[list[str], list[list[str]]]:
        """The objects of each image, the boxes that are told of, and all numbers of the maps.

        An object is class:left:top:right:bottom, a box has its score behind that.
        """
        heads = ["label", "named", *(f"logit_{n}" for n in range(answers[0].numel()))]
        rows = []
        for found, maps, has in zip(
            found_in(answers, self.threshold, self.overlap), answers, targets, strict=True
        ):
            truth = [_words(row[CLASS], row[:4]) for row in has if row[CLASS] >= 0]
            named = [
                f"{_words(number, box)}:{score:.6g}"
                for number, box, score in zip(found.classes, found.boxes, found.scores, strict=True)
            ]
            numbers = (f"{value:.9g}" for value in maps.float().flatten().tolist())
            rows.append([" ".join(truth), " ".join(named), *numbers])
        return heads, rows

    def _flags(self, answers: Tensor, targets: Tensor) -> Tensor:
        return objects_found(found_in(answers, self.threshold, self.overlap), targets)

    def _decided(self, maps: Tensor) -> Decisions:
        return decisions(maps.float(), self.threshold)


def shown_rows(images: Images) -> Tensor:
    """Rows of the images of a test set that are drawn, from all over it."""
    return torch.linspace(0, len(images) - 1, min(_SHOWN, len(images))).long()


def _words(number: float, sides: Sequence[float]) -> str:
    return ":".join([str(int(number)), *(f"{side:.6g}" for side in sides)])


def _boxes(config: DataConfig) -> CocoData | VocData:
    if not isinstance(config, CocoData | VocData):
        raise InputError(
            f"task.kind: got detection, which takes data.kind coco, voc or digit_scenes, not "
            f"{config.kind}"
        )
    return config


def _recall(flags: Tensor, targets: Tensor) -> float:
    return float(flags.sum()) / max(1, int(counted(targets).sum()))


def _changes(objects: Tensor, before: Tensor, after: Tensor) -> Changes:
    """Count the images by how many of their objects are found, before and after.

    Raises:
        ValueError: they are not of the same images and objects.
    """
    if not objects.shape == before.shape == after.shape:
        shapes = ", ".join(str(list(each.shape)) for each in (objects, before, after))
        raise ValueError(f"objects found of other images, or other objects: {shapes}")
    whole, first, second = (each.sum(1) for each in (objects.long(), before.long(), after.long()))
    same = first == second
    return Changes(
        kept=int((same & (first == whole)).sum()),
        lost=int((second < first).sum()),
        gained=int((second > first).sum()),
        neither=int((same & (first != whole)).sum()),
    )
