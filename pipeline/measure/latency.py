"""How long one call takes: deciles of timed runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from pipeline.base.record import Above0, MeasuredRecord, Positive

_DECILES = {"p10": 1, "median": 5, "p90": 9}


class Latency(MeasuredRecord):
    """Milliseconds of one call on `batch` images; `latency_of` makes it from its samples."""

    median: Above0
    p10: Above0
    p90: Above0
    runs: Positive
    threads: Positive
    batch: Positive
    samples_ms: tuple[Above0, ...]

    @model_validator(mode="after")
    def _of_its_samples(self) -> Self:
        if self.runs != len(self.samples_ms):
            raise ValueError(f"runs: got {self.runs}, but there are {len(self.samples_ms)} samples")
        for name, tenths in _DECILES.items():
            if getattr(self, name) != _decile(self.samples_ms, tenths):
                raise ValueError(f"{name}: is not that of samples_ms; make it with latency_of")
        return self


def _decile(samples: Sequence[float], tenths: int) -> float:
    """Interpolate between neighbours so that deciles stay in order: no rounding past either."""
    ordered, last = sorted(samples), len(samples) - 1
    index, rest = divmod(tenths * last, 10)
    low, high = ordered[index], ordered[min(index + 1, last)]
    return low + (high - low) * (rest / 10)


def latency_of(samples_ms: Sequence[float], threads: int, batch: int) -> Latency:
    """Sum up timed runs, in the order they were taken, of `batch` images on `threads` threads.

    Raises:
        ValueError: without samples, or when one is not a finite number above 0.
    """
    if not samples_ms or not all(0 < sample < math.inf for sample in samples_ms):
        raise ValueError(f"runs of {list(samples_ms)} ms; give at least 1, each finite and above 0")
    return Latency(
        **{name: _decile(samples_ms, tenths) for name, tenths in _DECILES.items()},
        runs=len(samples_ms),
        threads=threads,
        batch=batch,
        samples_ms=tuple(samples_ms),
    )
