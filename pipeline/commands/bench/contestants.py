"""What is timed side by side: the float network in torch, files of runs, files of other tools."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from pipeline.base.errors import InputError, reading
from pipeline.commands.bench.peers.make import Peer
from pipeline.measure import timing
from pipeline.networks.resnest.network import ResNeSt
from pipeline.stages.finished_run import Finished
from pipeline.tasks.accuracy import Accuracy
from pipeline.tasks.classification import accuracies
from pipeline.tasks.images.dataset import Dataset, pixel_values

EAGER = "torch eager"

Invocation = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to run the network.

    Attributes:
        name: unique in a benchmark.
        runtime: what computes it.
        precision: float or int8.
        path: of its file; None for torch.
        size_bytes: of the file.
        made_in_s: seconds that another tool took to make the file; None for torch and for our
            files, whose runs say it.
        accuracy: on the first test set; None where nothing here computes it.
        open: gives one run on one image on so many threads; None where it cannot be timed here.
        missing: why it cannot be timed, in a line.
    """

    name: str
    runtime: str
    precision: str
    path: Path | None
    size_bytes: int | None
    made_in_s: float | None
    accuracy: Accuracy | None
    open: Callable[[int], Invocation] | None
    missing: str | None


def of_torch(
    model: ResNeSt, image: Tensor, accuracy: Accuracy | None, *, variants: bool
) -> list[Contestant]:
    """The float network, eager; with `variants` channels-last and compiled as well.

    Args:
        model: in evaluation mode.
        image: (1, 3, side, side).
        accuracy: of the network.
        variants: whether to have them all.
    """

    def eager(threads: int) -> Invocation:
        return timing.float_run(model, image)

    def channels_last(threads: int) -> Invocation:
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
            runtime="torch",
            precision="float",
            path=None,
            size_bytes=None,
            made_in_s=None,
            accuracy=accuracy,
            open=way,
            missing=None,
        )
        for name, way in ways.items()
    ]


def of_run(run: Finished, dataset: Dataset) -> Contestant:
    """The file of a finished run.

    Args:
        run: its directory holds the file and its report.
        dataset: of the recipe.
    """
    target = run.report().targets[0]
    why_not: str | None = run.format.cannot_time()
    fed = pixel_values(dataset) if run.recipe.target.takes_pixels else dataset
    image = timing.first_image(fed)
    return Contestant(
        name=run.recipe.name,
        runtime=target.runtime,
        precision=target.precision,
        path=run.file,
        size_bytes=target.size_bytes,
        made_in_s=None,
        accuracy=first(target.accuracy),
        open=None if why_not else opener(run.recipe.target.format, run.file, image),
        missing=why_not,
    )


def of_peer(peer: Peer, dataset: Dataset) -> Contestant:
    """The file that another tool made, with its accuracy, which is computed here.

    Args:
        peer: the file.
        dataset: gives the test images.
    """
    module = import_module(f"pipeline.formats.{peer.format}.file")
    missing = peer.missing or module.cannot_time()
    accuracy = None
    if peer.path is not None and missing is None:
        runnable = module.open_file(peer.path, torch.get_num_threads())
        logits = timing.logits_of(runnable, dataset, lambda done: None)
        accuracy = first(accuracies(logits, dataset))
    image = timing.first_image(dataset)
    return Contestant(
        name=peer.name,
        runtime=module.RUNTIME,
        precision=peer.precision,
        path=peer.path,
        size_bytes=None if peer.path is None else timing.size_bytes(peer.path),
        made_in_s=peer.seconds,
        accuracy=accuracy,
        open=None if missing or peer.path is None else opener(peer.format, peer.path, image),
        missing=missing,
    )


def opener(format_name: str, file: Path, image: Tensor) -> Callable[[int], Invocation]:
    """Gives one run of a file on `image` (1, 3, side, side) on so many threads."""

    def opened(threads: int) -> Invocation:
        with reading(file):
            runnable = import_module(f"pipeline.formats.{format_name}.file").open_file(
                file, threads
            )
            runnable.set_input(image.numpy())
            runnable.invoke()
        run: Invocation = runnable.invoke
        return run

    return opened


def first(accuracies: dict[str, Accuracy] | None) -> Accuracy | None:
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
