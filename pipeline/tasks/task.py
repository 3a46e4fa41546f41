"""A task: what is known of it without torch, and what its module must offer.

A network gives one tensor of numbers for every image, its answer: (images, classes) for a
classifier, maps (images, channels, height, width) elsewhere. What an image should be answered with
is its target: a class, a mask, boxes. Only the module of a task looks into either.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.recipe.target import Output
from pipeline.recipe.task import Link

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from pipeline.recipe.data import DataConfig
    from pipeline.recipe.input_shape import InputShape
    from pipeline.recipe.task import TaskConfig
    from pipeline.recipe.training import TrainConfig
    from pipeline.tasks.accuracy import AnyAccuracy, Changes, Confusion
    from pipeline.tasks.images.dataset import Dataset
    from pipeline.tasks.predictions import Predictions

    Answers = Mapping[str, Tensor]
    """By set of images."""
    Loss = Callable[[Tensor, Tensor], Tensor]
    """Of answers and targets, the mean over a batch."""
    Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """Makes of images and targets other images with targets of their own."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often two sets of answers come to the same result.

    Attributes:
        same: what is the same, in words, such as `the same top-1`.
        unit: what was counted, in words: images, pixels, boxes.
        units: how many.
        share: of the units with the same result.
        leads: of every other unit, by how many steps of the output's grid the result that should
            be should lead the one that is; infinitely many without a grid.
    """

    same: str
    unit: str
    units: int
    share: float
    leads: tuple[float, ...]


class Prediction(Protocol):
    """The answers to one image, for people."""

    @property
    def image(self) -> str:
        """Its name."""

    def heading(self) -> str:
        """What the rows of the table are of."""

    def rows(self) -> Sequence[tuple[str, Mapping[str, str]]]:
        """Name of each row, and its cells by the name of the network or file that answers."""

    def notes(self) -> Sequence[str]:
        """What else is to be said, a line each."""

    def drawn(self, pixels: Tensor) -> Image | None:
        """The image, uint8 [C, H, W], with the answers beside it; None where words say all."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What kept predictions come to, by test set, as a report has it.

    Attributes:
        float_model: which classes it named for which; None where that cannot be asked.
        file: likewise.
        missing: why not; None where it can.
        changes: what became of the images.
    """

    float_model: dict[str, Confusion] | None
    file: dict[str, Confusion] | None
    missing: str | None = None
    changes: dict[str, Changes]


def changes_alone(
    predictions: Mapping[str, Predictions],
    changes: Callable[[Tensor, Tensor, Tensor], Changes],
    missing: str,
) -> Counted:
    """What became of the images, where classes are not taken for one another.

    Args:
        predictions: by test set.
        changes: counts them, of what should be, what was before and what is now.
        missing: why nothing is said of classes.
    """
    return Counted(
        float_model=None,
        file=None,
        missing=missing,
        changes={
            name: changes(one.labels, one.float_model, one.file)
            for name, one in predictions.items()
        },
    )


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What the output of a file says, for whoever uses the file.

    Attributes:
        brief: in a sentence, which the file itself holds.
        rule: in full, which the contract of a bundle holds.
        threshold: probability above which a label is named; None where labels exclude each other.
        above: the same of a logit, a float32.
        things: what is told apart, several.
        brief_of_probabilities: `brief` of a file that gives probabilities in place of logits.
        rule_of_probabilities: likewise.
    """

    brief: str
    rule: str
    threshold: float | None = None
    above: float | None = None
    things: str = "classes"
    brief_of_probabilities: str = ""
    rule_of_probabilities: str = ""

    def given(self, output: Output) -> Meaning:
        """Of a file that gives logits, or probabilities: `above` is then one, the float32."""
        if output == "logits":
            return self
        return replace(
            self,
            brief=self.brief_of_probabilities,
            rule=self.rule_of_probabilities,
            above=None if self.threshold is None else _float32(self.threshold),
        )


def _float32(value: float) -> float:
    """The nearest number that a float32 can be."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


class TaskModule(Protocol):
    """What the module of a task offers: its data, its loss, and everything that judges answers."""

    def load(
        self, config: DataConfig, shape: InputShape, seed: int = 0, cache: Path | None = None
    ) -> Dataset:
        """Load the data of a recipe; the same arguments give the same dataset, image by image.

        Args:
            config: the recipe's `data`.
            shape: of a delivered image.
            seed: picks which training images calibrate.
            cache: directory that keeps decoded images for later runs.

        Raises:
            InputError: data is missing, unreadable or does not fit together.
        """

    def class_names(self, config: DataConfig) -> tuple[str, ...]:
        """The classes of a recipe's data, in order; no image is decoded.

        Raises:
            InputError: they cannot be read, or do not fit together.
        """

    def decoded_places(self, config: DataConfig, shape: InputShape, cache: Path) -> set[Path]:
        """Where in `cache` `load` looks for decoded images, whether they are there or not.

        Raises:
            InputError: the images cannot be looked at.
        """

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Names of the numbers that a network gives for an image, or for a place of its map."""

    def meaning(self) -> Meaning:
        """What those numbers say."""

    def loss(self, config: TrainConfig | None = None, targets: Tensor | None = None) -> Loss:
        """What a training minimises; without one the plain loss, which channels are judged by.

        Args:
            config: of the training.
            targets: of all its images, where the loss is to follow how frequent classes are.
        """

    def shares(self, answers: Tensor) -> Tensor:
        """Logits whose softmax is what answers say of an image; what distillation compares."""

    def mixer(self, config: TrainConfig, outputs: int) -> Mix | None:
        """How the images of a batch are mixed; None where they are not."""

    def right(self, answers: Tensor, targets: Tensor) -> float:
        """Images of a batch that are answered right; shown while a network is trained."""

    def accuracies(self, answers: Answers, dataset: Dataset) -> dict[str, AnyAccuracy]:
        """The metric by test set of `dataset`; `answers` may hold those of further images."""

    def compare(self, found: Answers, wanted: Answers, step: float | None) -> Agreement:
        """How often answers come to the result of those that they should be.

        Args:
            found: of a file, say.
            wanted: of its program.
            step: scale of the grid that `wanted` lie on; None without one.
        """

    def named(self, answers: Answers, dataset: Dataset) -> dict[str, tuple[Any, ...]]:
        """The result for every test image, a whole number or several, by test set of `dataset`."""

    def confirms(self, named: Sequence[Any], targets: Tensor, accuracy: AnyAccuracy) -> bool:
        """Whether a metric may be that of the results of a test set that were kept."""

    def keep(self, answers: Answers, dataset: Dataset, path: Path) -> None:
        """Keep in a stage's directory what its network, or file, makes of every test image."""

    def gathered(self, dataset: Dataset, baseline: Path, file: Path) -> dict[str, Predictions]:
        """What two stages kept in their directories, by test set of `dataset`."""

    def changes(self, before: Predictions, after: Predictions) -> Changes:
        """What became of the images of a test set from one file to another."""

    def counted(self, predictions: Mapping[str, Predictions]) -> Counted:
        """What kept predictions come to."""

    def prediction(
        self, image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
    ) -> Prediction:
        """What several networks or files make of one image.

        Args:
            image: its name.
            answers: one tensor each, by name; the float network's first.
            classes: names, as `labels.txt` of a run has them.
            top: how many results to give, where there is an order of them.
        """

    def golden_order(self, targets: Tensor) -> Tensor:
        """Rows of test images, as different ones as can be first: int64 [N]."""

    def golden_clear(self, answers: Tensor, tolerance: float) -> Tensor:
        """Rows of answers, those first whose result no change of `tolerance` can change."""

    def golden_table(
        self, answers: Tensor, targets: Sequence[Any]
    ) -> tuple[list[str], list[list[str]]]:
        """The columns of expected.csv behind the image's name: their heads, and a row an image."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, an entry of `TASKS`.

    Attributes:
        title: for people.
        figure: the primary figure of its metric, a share: what guard and budgets judge by.
        link: what makes probabilities of its answers.
        module: imports what learns and judges, as a recipe's `task` says.
        options: the keys of `task` that it has besides `kind`.
        table: whether a table says what an image is, and not the folder that it lies in.
        data: the kinds of data that it takes, where these are no images with classes.
        mixes: whether images can be mixed with each other, and changed by a policy.
        bundled: whether a bundle has code that makes something of a file's answers.
        turns: whether targets follow an image that is turned or cut, as masks do.
        probabilities: whether a file can give probabilities in place of logits.
        maps: whether answers are maps of classes.
    """

    title: str
    figure: str
    link: Link
    module: Callable[[TaskConfig], TaskModule]
    options: tuple[str, ...] = ()
    table: bool = False
    data: tuple[str, ...] = ()
    mixes: bool = True
    bundled: bool = True
    turns: bool = True
    probabilities: bool = True
    maps: bool = False
