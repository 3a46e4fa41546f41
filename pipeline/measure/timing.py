"""Accuracy, size and latency of anything that runs: the float model or an exported file."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.compress.quantization.running import rounding_at_once
from pipeline.formats.format import Runnable
from pipeline.measure.downloads import files_of
from pipeline.measure.latency import Latency, latency_of
from pipeline.tasks.evaluation import predictions
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import normalize

Key = TypeVar("Key", bound=Hashable)
TimedCall = Callable[[], Any]
Timer = Callable[[TimedCall], float]
"""Runs something to its end and returns the milliseconds that took."""

_COMPARED_MS = 1000.0
_SAME, _WINDOW = 0.95, 5
_MOST_WARM_SECONDS = 10.0


def run_images(runnable: Runnable, images: Tensor) -> Tensor:
    """Logits (batch, ...) of an opened file for images (batch, 3, side, side)."""
    parts = []
    for part in torch.split(images, runnable.batch or len(images)):
        runnable.set_input(part.numpy())
        runnable.invoke()
        parts.append(torch.from_numpy(runnable.output().copy()))
    return torch.cat(parts)


def program_logits(program: torch.export.ExportedProgram, dataset: Dataset) -> dict[str, Tensor]:
    """Logits of the quantized program, run by torch, by test set."""
    run = rounding_at_once(program)
    return {name: predictions(run, images, dataset) for name, images in dataset.tests.items()}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a network on a batch.

    Attributes:
        run: one call.
        ready: called before every run, untimed; sets how the device multiplies.
    """

    run: TimedCall
    ready: Callable[[], object] = lambda: None


def wall_clock(wait: Callable[[], object]) -> Timer:
    """A timer of what a caller waits for; `wait` returns when the device has done all it has."""

    def timed(run: TimedCall) -> float:
        wait()
        started = time.perf_counter()
        run()
        wait()
        return (time.perf_counter() - started) * 1e3

    return timed


def in_turn(
    ways: Mapping[Key, Way],
    *,
    warmup: int,
    rounds: int,
    timer: Timer,
    advance: Callable[[int], object] = lambda done: None,
) -> dict[Key, list[float]]:
    """Milliseconds of every run of several ways, which take turns (A B A B ...).

    A machine's speed can change many-fold for minutes, by its heat and its other work: timed in
    turn, all see the same.

    Args:
        ways: by any name.
        warmup: runs of each that do not count, at least; none where it is 0. They go on until no
            way gets faster, for ten seconds at most.
        rounds: that do.
        timer: of one run.
        advance: called with the number of rounds done.
    """
    if warmup:
        _warm_up(ways, warmup, timer)
    samples: dict[Key, list[float]] = {name: [] for name in ways}
    for done in range(rounds):
        for name, way in ways.items():
            way.ready()
            samples[name].append(timer(way.run))
        advance(done + 1)
    return samples


def _warm_up(ways: Mapping[Key, Way], least: int, timer: Timer) -> None:
    """Run all ways in turn until caches, threads and clocks have settled.

    The first runs of a process may take twice as long as all later ones: with a fixed number of
    them, the float network was slower in one report of a machine than in another.
    """
    taken: dict[Key, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    while True:
        for name, way in ways.items():
            way.ready()
            taken[name].append(timer(way.run))
        done = len(next(iter(taken.values()), ()))
        if done >= least and (
            all(map(steady, taken.values())) or time.perf_counter() - began > _MOST_WARM_SECONDS
        ):
            return


def steady(samples: Sequence[float]) -> bool:
    """Whether the last runs took about as long as those before them, by the median of five."""
    last, before = samples[-_WINDOW:], samples[-2 * _WINDOW : -_WINDOW]
    return len(before) == _WINDOW and median(last) >= _SAME * median(before)


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    warmup: int,
    rounds: int,
    threads: int,
    untimed: int = 0,
    advance: Callable[[int], object] = lambda done: None,
) -> dict[str, Latency]:
    """Time several callables in turn, one image each, as `in_turn` does.

    Args:
        runs: by name.
        warmup: runs of each before the first round.
        rounds: that are timed.
        threads: of torch, and recorded.
        untimed: runs of each in every round before the one that is timed, which then finds its
            weights in the caches as it would alone, whatever ran before it.
        advance: called with the number of rounds done.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ways = {
            name: Way(run=run, ready=partial(_repeat, run, untimed)) for name, run in runs.items()
        }
        # A CPU has done a call when it returns.
        timer = wall_clock(lambda: None)
        samples = in_turn(ways, warmup=warmup, rounds=rounds, timer=timer, advance=advance)
    finally:
        torch.set_num_threads(before)
    return {name: latency_of(taken, threads, 1) for name, taken in samples.items()}


def _repeat(run: TimedCall, times: int) -> None:
    for _ in range(times):
        run()


def compared(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, threads: int
) -> dict[str, Latency]:
    """Time callables in turn where their ratio counts: for a second at least, warm.

    Small files take a millisecond: thirty rounds of them are over before the caches and the
    clock have settled, and the ratio of two such runs is off by a tenth.

    Args:
        runs: by name.
        rounds: the least that count.
        threads: of torch, and recorded.
    """
    first = interleaved(runs, warmup=3, rounds=5, threads=threads)
    each = sum(latency.median for latency in first.values())
    enough = max(rounds, math.ceil(_COMPARED_MS / each))
    return interleaved(runs, warmup=enough // 4, rounds=enough, threads=threads)


def float_run(model: nn.Module, image: Tensor) -> Callable[[], object]:
    """One eager forward pass of the float model on `image` (1, 3, side, side)."""

    def run() -> None:
        with torch.inference_mode():
            model(image)
        if image.is_cuda:
            torch.cuda.synchronize()

    return run


def first_image(dataset: Dataset) -> Tensor:
    """A real test image, normalised, (1, 3, side, side)."""
    images = next(iter(dataset.tests.values()))
    return normalize(images.pixels(torch.tensor([0])), dataset.mean, dataset.std)


def size_bytes(path: Path) -> int:
    """Bytes on disk of a file or package."""
    return sum(file.stat().st_size for file in files_of(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a package's files."""
    digest = hashlib.sha256()
    for file in files_of(path):
        if file != path:
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()
