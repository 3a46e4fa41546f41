"""A lane: a place where exported files run, and what is asked of it.

A lane may be another machine, or an emulated one, so it is handed whole jobs: files with the
images that each takes. It opens, copies and cleans up as it must, and gives numbers back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.base.machine import HostInfo

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.measure.first_use import FirstUse
    from pipeline.measure.latency import Latency

Advance = Callable[[int], object]
"""Called with the number of images that are answered, or of rounds that are done."""


def silent(done: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """An exported file: where it is, and the name of its format."""

    path: Path
    format: str


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How files are timed: they take turns, one run of each in every round.

    Attributes:
        warmup: runs of each that do not count.
        count: rounds that do; the least, where they are `settled`.
        untimed: runs of each in every round before the one that is timed, which then finds its
            weights in the caches as it would alone, whatever ran before it.
        settled: go on for a second at least, where a ratio of small files counts.
    """

    warmup: int
    count: int
    untimed: int = 0
    settled: bool = False


class FileAnswers(Protocol):
    """What files answer."""

    def __call__(
        self,
        files: Mapping[str, ModelFile],
        inputs: Iterable[Tensor],
        threads: int,
        advance: Advance = silent,
    ) -> dict[str, Tensor]:
        """Run every file on the same images.

        Args:
            files: by any name.
            inputs: batches, float32 (batch, 3, side, side), as the files take them: normalised,
                or pixel values.
            threads: of the CPU.
            advance: told of the images that are done.

        Returns:
            A tensor (images, ...) for every file.

        Raises:
            InputError: a file cannot be run there; names it.
        """


class Times(Protocol):
    """How long files take for one image."""

    def __call__(
        self,
        files: Mapping[str, ModelFile],
        inputs: Mapping[str, Tensor],
        threads: int,
        rounds: Rounds,
        beside: Mapping[str, Callable[[], object]] = ...,
        advance: Advance = silent,
    ) -> dict[str, Latency]:
        """Time files in turn.

        Args:
            files: by any name, of formats that the lane can time.
            inputs: the image of each, float32 (1, 3, side, side).
            threads: of the CPU.
            rounds: how often.
            beside: calls of this process that take turns with the files, and come first in every
                round; only where the lane has `takes_calls`.
            advance: told of the rounds that are done.

        Raises:
            InputError: a file cannot be run there; names it.
        """


class FirstUses(Protocol):
    """What a file costs before its second answer."""

    def __call__(self, file: ModelFile, image: Tensor, threads: int) -> FirstUse:
        """Open a file and run it once, a few times over.

        Raises:
            InputError: the file cannot be run there; names it.
        """


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Of one inference, on one thread.

    Attributes:
        total: all of them.
        products: those that multiply int8 numbers.
    """

    total: int
    products: int


class Counts(Protocol):
    """How many instructions files take for one image; no time, and exact."""

    def __call__(
        self, files: Mapping[str, ModelFile], inputs: Mapping[str, Tensor]
    ) -> dict[str, Instructions]:
        """Count the instructions of one inference of each file.

        Args:
            files: by any name.
            inputs: the image of each, float32 (1, 3, side, side).

        Raises:
            InputError: a file cannot be run there; names it.
        """


@dataclass(frozen=True, kw_only=True)
class Counting:
    """What a lane offers that counts instructions; it is emulated, and slow.

    Attributes:
        cannot_count: why it cannot run files of a format; None where it can.
        counts: see `Counts`.
        least: the instructions that multiply-accumulates alone would take, of those in int8 and
            of all.
    """

    cannot_count: Callable[[str], str | None]
    counts: Counts
    least: Callable[[int, int], int]


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A place where files run, an entry of `LANES`.

    Attributes:
        title: for people.
        machine: what it is, as records hold it.
        cannot_time: why it cannot time files of a format; None where it can. What an emulated
            machine takes is not a time.
        answers: see `Answers`.
        times: see `Times`.
        first_use: see `FirstUses`; None where that cannot be measured.
        takes_calls: whether it is this process, which can time its own calls in turn with files.
        counting: in place of times; None where the lane times files.
    """

    title: str
    machine: Callable[[], HostInfo]
    cannot_time: Callable[[str], str | None]
    answers: FileAnswers
    times: Times
    first_use: FirstUses | None = None
    takes_calls: bool = field(default=False)
    counting: Counting | None = None
