"""Which of two that were timed in turn is the faster one, and whether that can be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.measure.latency import Latency

RatioVerdict = Literal["faster", "slower", "not told apart"]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast one is as another, round by round.

    Attributes:
        median: of the ratios of the rounds.
        p10: a tenth of the rounds have less.
        p90: a tenth of the rounds have more.
        verdict: of the faster one; `not told apart` where the rounds between the two deciles lie
            on both sides of 1.
    """

    median: float
    p10: float
    p90: float
    verdict: RatioVerdict

    @property
    def doubt(self) -> str | None:
        """Why the ratio says nothing; None where it does."""
        if self.verdict != "not told apart":
            return None
        return (
            f"the rounds spread from {self.p10:.2f} to {self.p90:.2f}: which is faster cannot be "
            "told; give measure.rounds more, on a machine that does nothing else"
        )


def ratio_of(slow: Latency, fast: Latency) -> Ratio:
    """How many times as fast `fast` is as `slow`; both timed in turn, in equally many rounds.

    Neighbours in a round saw the same machine, so that its changes of speed cancel.

    Raises:
        ValueError: the two were not timed in the same number of rounds.
    """
    return _summed_up(np.divide(*_paired(slow, fast)).tolist())


def _paired(slow: Latency, fast: Latency) -> tuple[Sequence[float], Sequence[float]]:
    if slow.runs != fast.runs or slow.threads != fast.threads:
        raise ValueError(
            f"got {slow.runs} rounds on {slow.threads} threads and {fast.runs} on {fast.threads}; "
            "only what was timed in turn can be compared"
        )
    return slow.samples_ms, fast.samples_ms


def _summed_up(ratios: Sequence[float]) -> Ratio:
    p10, median, p90 = (float(v) for v in np.quantile(ratios, (0.1, 0.5, 0.9)))
    verdict: RatioVerdict = "faster" if p10 > 1 else "slower" if p90 < 1 else "not told apart"
    return Ratio(median=median, p10=p10, p90=p90, verdict=verdict)
