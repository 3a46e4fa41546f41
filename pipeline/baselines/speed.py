"""Timing of calls on a device, in turn; what a device does is passed in, so that any can be.

times = in_turn(ways, warmup=5, rounds=30, timer=wall_clock(torch.cuda.synchronize))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)
Run = Callable[[], Any]
Timer = Callable[[Run], float]
"""Runs something to its end and returns the milliseconds that took."""

_WARMUP = 3
"""The least: cuDNN tries its algorithms in the first runs, and a graph wants them settled."""

_MOST_APART = 0.02
"""Of the largest logit, between a CUDA graph's answer and the network's own."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to run a network on a batch.

    Attributes:
        run: one call.
        ready: called before every run, untimed; sets how the device multiplies.
    """

    run: Run
    ready: Callable[[], object] = lambda: None


def wall_clock(wait: Callable[[], object]) -> Timer:
    """A timer of what a caller waits for; `wait` returns when the device has done all it has."""

    def timed(run: Run) -> float:
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

    A device's speed changes with its heat and its other work: timed in turn, all see the same.

    Args:
        ways: by any name.
        warmup: runs of each that do not count, three at the least.
        rounds: that do.
        timer: of one run.
        advance: called with the number of rounds done.
    """
    for way in ways.values():
        way.ready()
        for _ in range(max(warmup, _WARMUP)):
            timer(way.run)
    samples: dict[Key, list[float]] = {name: [] for name in ways}
    for done in range(rounds):
        for name, way in ways.items():
            way.ready()
            samples[name].append(timer(way.run))
        advance(done + 1)
    return samples


def largest_batch(attempt: Callable[[int], object], batch: int) -> int:
    """The first of batch, batch / 2, batch / 4, ... that `attempt` has the memory for.

    Raises:
        OutOfMemoryError, RuntimeError, MemoryError: there is none for a single image.
    """
    while True:
        try:
            attempt(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch == 1:
                raise
        else:
            return batch
        # Outside of the handler, whose error holds what the attempt had taken.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch //= 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)  # torch's CPU allocator
    )


def captured(run: Callable[[], Tensor]) -> Run:
    """The call as a CUDA graph: its kernels are started by one command in place of hundreds.

    What `run` reads must stay where it is as long as the graph is replayed.

    Raises:
        RuntimeError: it cannot be captured, or answers otherwise.
    """
    expected = run().clone()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch asks for, before a capture
        for _ in range(_WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()
    graph.replay()
    torch.cuda.synchronize()
    apart = float((answer.float() - expected.float()).abs().max() / expected.float().abs().max())
    if not apart <= _MOST_APART:
        raise RuntimeError(f"the graph's answer is {apart:.1%} of the largest logit off")
    return graph.replay
