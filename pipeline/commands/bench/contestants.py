"""What is timed side by side: the float network in torch, files of runs, files of other tools."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.commands.bench.peers.make import Peer
from pipeline.formats.formats import FORMATS
from pipeline.measure import timing
from pipeline.measure.lanes.lane import Lane, ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.lanes.sets import answers_to_tests
from pipeline.stages.finished_run import (
    Finished,
    float_network,
    no_code,
    no_float_weights,
    refuse_others,
    untrained_network,
)
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.images.dataset import Dataset, pixel_values
from pipeline.tasks.task import TaskModule

EAGER = "torch eager"
OURS = "PocketNest"
"""The tool that made the files of runs."""

Invocation = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to run the network.

    Attributes:
        name: unique in a benchmark.
        tool: that made its file; of calls, that computes them.
        runtime: what computes it.
        precision: float or int8.
        path: of its file; None for torch.
        size_bytes: of the file.
        made_in_s: seconds that another tool took to make the file; None for torch and for our
            files, whose runs say it.
        accuracy: on the first test set; None where nothing here computes it.
        call: gives one call of this process on one image, on so many threads; None for files.
        file: that a lane times; None for calls, and where the lane cannot time it.
        image: that the file is given, (1, 3, side, side).
        note: what is to be said of it, in a line.
        missing: why it cannot be timed, in a line.
        clock: milliseconds that the last call took where it was made, in another process; None of
            calls that this process times.
        same_as: name of the contestant whose file it is, where only the runtime is another.
    """

    name: str
    tool: str
    runtime: str
    precision: str
    path: Path | None
    size_bytes: int | None
    made_in_s: float | None
    accuracy: AnyAccuracy | None
    call: Callable[[int], Invocation] | None = None
    file: ModelFile | None = None
    image: Tensor | None = None
    note: str | None = None
    missing: str | None = None
    clock: Callable[[], float] | None = None
    same_as: str | None = None


@dataclass(frozen=True, kw_only=True)
class TimedNetwork:
    """The float network of some runs, to be timed.

    Attributes:
        model: in evaluation mode; None where its code is gone.
        note: what there is to say of it, where a run was moved without it.
    """

    model: nn.Module | None
    note: str | None = None


def timed_network(runs: Sequence[Finished], *, trained: bool) -> TimedNetwork:
    """The float network that the files of some runs were all made from.

    Where a run was moved without its weights, it is timed with others: time is decided by shapes.

    Args:
        runs: of it.
        trained: whether its weights are needed for more than its time.

    Raises:
        InputError: the runs are of different networks, or weights are needed and gone.
    """
    refuse_others(runs)
    gone = None if trained else no_float_weights(runs[0])
    if not trained and (code := no_code(runs[0])) is not None:
        return TimedNetwork(model=None, note=code)
    if gone is None:
        return TimedNetwork(model=float_network(runs))
    note = f"{gone}; timed with random ones, which take as long"
    return TimedNetwork(model=untrained_network(runs[0]), note=note)


def of_torch(
    network: TimedNetwork,
    dataset: Dataset,
    accuracy: AnyAccuracy | None,
    lane: Lane,
    *,
    variants: bool,
) -> list[Contestant]:
    """The float network, eager; with `variants` channels-last and compiled as well.

    Args:
        network: to be timed.
        dataset: its first test image is what is timed.
        accuracy: of the network.
        lane: where all are timed.
        variants: whether to have them all.
    """
    model, image = network.model, timing.first_image(dataset)
    missing = None if lane.takes_calls else f"{lane.title} runs files alone"
    if model is None:
        missing = network.note

    def eager(threads: int) -> Invocation:
        assert model is not None
        return timing.float_run(model, image)

    def channels_last(threads: int) -> Invocation:
        assert model is not None
        turned = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return timing.float_run(turned, image.to(memory_format=torch.channels_last))

    def compiled(threads: int) -> Invocation:
        # The number of threads is compiled in.
        torch._dynamo.reset()
        torch.set_num_threads(threads)
        run = timing.float_run(torch.compile(copy.deepcopy(model)), image)  # type: ignore[arg-type]
        run()
        return run

    ways = {EAGER: eager}
    if variants:
        ways |= {"torch channels_last": channels_last, "torch compile": compiled}
    return [
        Contestant(
            name=name,
            tool="torch",
            runtime="torch",
            precision="float",
            path=None,
            size_bytes=None,
            made_in_s=None,
            accuracy=accuracy,
            call=None if missing else way,
            note=network.note,
            missing=missing,
        )
        for name, way in ways.items()
    ]


def of_run(run: Finished, dataset: Dataset, lane: Lane) -> Contestant:
    """The file of a finished run.

    Args:
        run: its directory holds the file and its report.
        dataset: of the recipe.
        lane: where it is timed.
    """
    target = run.report().targets[0]
    file = ModelFile(path=run.file, format=run.recipe.target.format)
    why_not = _cannot(lane, file.format)
    fed = pixel_values(dataset) if run.recipe.target.takes_pixels else dataset
    return Contestant(
        name=run.recipe.name,
        tool=OURS,
        runtime=target.runtime,
        precision=target.precision,
        path=run.file,
        size_bytes=target.size_bytes,
        made_in_s=None,
        accuracy=first(target.accuracy),
        file=None if why_not else file,
        image=timing.first_image(fed),
        missing=why_not,
    )


def of_peer(peer: Peer, dataset: Dataset, task: TaskModule, lane: Lane) -> Contestant:
    """The file that another tool made, with its accuracy, which is computed here.

    Args:
        peer: the file.
        dataset: gives the test images.
        task: judges its answers.
        lane: where it is timed.
    """
    missing = peer.missing or _cannot(lane, peer.format)
    accuracy = file = None
    if peer.path is not None and missing is None:
        file = ModelFile(path=peer.path, format=peer.format)
        # A lane that counts is slow, and how accurate a file is can be seen here.
        judging = lane if lane.counting is None else LANES[HOST]
        answers = answers_to_tests(judging, file, dataset, torch.get_num_threads())
        accuracy = first(task.accuracies(answers, dataset))
    return Contestant(
        name=peer.name,
        tool=peer.tool,
        runtime=FORMATS[peer.format].runtime,
        precision=peer.precision,
        path=peer.path,
        size_bytes=None if peer.path is None else timing.size_bytes(peer.path),
        made_in_s=peer.seconds,
        accuracy=accuracy,
        file=file,
        image=timing.first_image(dataset),
        missing=missing,
    )


def _cannot(lane: Lane, form: str) -> str | None:
    """Why a lane can neither time nor count files of a format; None where it can."""
    if lane.counting is not None:
        return lane.counting.cannot_count(form)
    return lane.cannot_time(form)


def first(accuracies: dict[str, AnyAccuracy] | None) -> AnyAccuracy | None:
    """On the first test set."""
    return None if accuracies is None else next(iter(accuracies.values()))


def refuse_same_names(contestants: Sequence[Contestant]) -> None:
    """Stop where two contestants could not be told apart in a table.

    Raises:
        InputError: names the first name given twice.
    """
    names = [contestant.name for contestant in contestants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two contestants are called {twice!r}; rename one of the recipes")
