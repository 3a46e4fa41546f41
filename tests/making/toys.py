"""A task and a lane as small as can be, which tests add by one entry of a table each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.machine import HostInfo
from pipeline.measure.lanes import host
from pipeline.measure.lanes.lane import Advance, Lane, ModelFile, Rounds, silent
from pipeline.measure.latency import Latency, latency_of
from pipeline.recipe.training import TrainConfig
from pipeline.tasks import classification
from pipeline.tasks.accuracy import Accuracy, AnyAccuracy
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.predictions import write_named
from pipeline.tasks.task import Agreement, Meaning, Task

SCALE = 10
MACHINE = HostInfo(cpu="a toy", cores=1, gpu=None)
MILLISECONDS = 4.0


@dataclass(frozen=True, kw_only=True)
class Number:
    """The number that each network reads in one image."""

    image: str
    read: dict[str, str]

    def heading(self) -> str:
        return "reading"

    def rows(self) -> list[tuple[str, dict[str, str]]]:
        return [("number", self.read)]

    def notes(self) -> list[str]:
        return [f"{len(self.read)} readings"]

    def drawn(self, pixels: Tensor) -> None:
        return None


class ReadsNumbers:
    """The task of reading a digit as a number: one output, a squared error, no classes at all."""

    load = staticmethod(classification.load)
    class_names = staticmethod(classification.class_names)
    decoded_places = staticmethod(classification.decoded_places)
    confirms = staticmethod(classification.confirms)
    gathered = staticmethod(classification.gathered)
    counted = staticmethod(classification.counted)
    changes = staticmethod(classification.changes)
    shares = staticmethod(classification.shares)

    def number(self, answers: Tensor) -> Tensor:
        return (answers[:, 0] * SCALE).round().clamp(0, SCALE - 1).long()

    def outputs(self, classes: Sequence[str]) -> tuple[str, ...]:
        return ("number",)

    def meaning(self) -> Meaning:
        return Meaning(brief="The digit, a tenth of it.", rule="ten times the number is the digit")

    def loss(
        self, config: TrainConfig | None = None, targets: Tensor | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        def squared(answers: Tensor, targets: Tensor) -> Tensor:
            return (answers[:, 0] - targets / SCALE).square().mean()

        return squared

    def mixer(self, config: TrainConfig, outputs: int) -> None:
        assert outputs == 1

    def right(self, answers: Tensor, targets: Tensor) -> float:
        return float((self.number(answers) == targets).sum())

    def accuracies(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, AnyAccuracy]:
        found: dict[str, AnyAccuracy] = {}
        for name, images in dataset.tests.items():
            off = (self.number(answers[name]) - images.labels).abs()
            exact, near = float((off == 0).double().mean()), float((off <= 2).double().mean())
            found[name] = Accuracy(top1=exact, top5=near, images=len(images))
        return found

    def compare(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], step: float | None
    ) -> Agreement:
        one, two = (torch.cat([side[name] for name in wanted]) for side in (found, wanted))
        other = self.number(one) != self.number(two)
        leads = (one - two)[other].abs().flatten() / (step or 1e-9)
        return Agreement(
            same="the same number",
            unit="digits",
            units=len(two),
            share=float((~other).double().mean()),
            leads=tuple(leads.tolist()),
        )

    def named(self, answers: Mapping[str, Tensor], dataset: Dataset) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.number(answers[name]).tolist()) for name in dataset.tests}

    def keep(self, answers: Mapping[str, Tensor], dataset: Dataset, path: Path) -> None:
        write_named({name: self.number(answers[name]) for name in dataset.tests}, path)

    def prediction(
        self, image: str, answers: Mapping[str, Tensor], classes: Sequence[str], top: int
    ) -> Number:
        read = {name: str(int(self.number(one[None]))) for name, one in answers.items()}
        return Number(image=image, read=read)

    def golden_order(self, targets: Tensor) -> Tensor:
        return torch.arange(len(targets))

    def golden_clear(self, answers: Tensor, tolerance: float) -> Tensor:
        return torch.arange(len(answers))

    def golden_table(
        self, answers: Tensor, targets: Sequence[int]
    ) -> tuple[list[str], list[list[str]]]:
        numbers = self.number(answers).tolist()
        return ["wanted", "number"], [
            [str(one), str(two)] for one, two in zip(targets, numbers, strict=True)
        ]


NUMBERS = Task(
    title="reading of numbers", figure="exact", link="softmax", module=lambda _: ReadsNumbers()
)


def _answers(
    files: Mapping[str, ModelFile],
    inputs: Iterable[Tensor],
    threads: int,
    advance: Advance = silent,
) -> dict[str, Tensor]:
    return host.answers(files, inputs, threads, advance)


def _times(
    files: Mapping[str, ModelFile],
    inputs: Mapping[str, Tensor],
    threads: int,
    rounds: Rounds,
    beside: Mapping[str, Callable[[], object]] | None = None,
    advance: Advance = silent,
) -> dict[str, Latency]:
    assert not beside, "it is no process of ours"
    assert {tuple(inputs[name].shape[:2]) for name in files} == {(1, 3)}
    advance(rounds.count)
    taken = [MILLISECONDS / threads] * rounds.count
    return {name: latency_of(taken, threads, 1) for name in files}


TOY_LANE = Lane(
    title="a toy",
    machine=lambda: MACHINE,
    cannot_time=lambda form: "a toy runs no packages" if form == "coreml" else None,
    answers=_answers,
    times=_times,
)
