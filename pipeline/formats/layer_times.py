"""From raw samples to the time of each operation of a file, the same for every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Samples = Sequence[float] | NDArray[np.float64]
"""Milliseconds, one value for each round."""

OTHER = "(other)"
"""Key for the time of operations that the runtime adds and that make no tensor of the file."""

_BLOCK_ROUNDS, _WARMUP_ROUNDS = 5, 2
_LEAST = 1e-4
"""Milliseconds given where an operation takes no longer than what timing it costs."""


def blocks(rounds: int) -> list[list[bool]]:
    """Blocks of rounds in which a network and its operations are timed in turn.

    Not one run of each in turn: two copies of the weights would take each other's place in the
    cache. Not all of one and then all of the other: a machine's speed changes within seconds.

    Returns:
        For each block and each round of it whether that counts; the first ones warm up. `rounds`
        of all count.
    """
    counting = [min(_BLOCK_ROUNDS, rounds - done) for done in range(0, rounds, _BLOCK_ROUNDS)]
    return [[False] * _WARMUP_ROUNDS + [True] * count for count in counting]


def typical(samples: Samples) -> float:
    """The mean of the middle half of `samples`.

    As deaf to outliers as a median, but finer where a clock only counts whole microseconds.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    quarter = len(ordered) // 4
    return float(ordered[quarter : len(ordered) - quarter].mean())


def net_times(samples: Mapping[str, Samples], whole: Samples) -> dict[str, float]:
    """Typical milliseconds of each operation, less what the timing of one costs.

    That cost is taken to be the same for all: what they take longer together than the network
    does in one piece, divided among them.

    Args:
        samples: of each operation, by its name.
        whole: of the network, timed in turn with its operations (see `blocks`).

    Returns:
        More than 0 for every operation.
    """
    together = np.sum([np.asarray(taken) for taken in samples.values()], axis=0)
    overhead = max(typical((together - np.asarray(whole)) / len(samples)), 0.0)
    return {name: max(typical(taken) - overhead, _LEAST) for name, taken in samples.items()}
