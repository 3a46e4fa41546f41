"""What a file may differ by from the program that it was written from; known without torch."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32_EPSILON, FLOAT16_EPSILON = 2.0**-23, 2.0**-10
"""Of torch.finfo, which takes seconds to import."""
MEDIAN_STEPS, P99_STEPS = 0, 2
"""Most steps of its grid between a tensor of a file and the program's: rounding."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What logits must keep against those they should be.

    Attributes:
        agreement: least share of images with the same first class.
        median: most steps of the output grid at the median.
        p99: most steps at the 99th percentile.
        difference: of a float network, most difference as a share of the largest logit.
        epsilon: of the arithmetic in which the numbers of a layer are made, before they are
            rounded to its grid.
    """

    agreement: float = 0.995
    median: int = MEDIAN_STEPS
    p99: int = P99_STEPS
    difference: float = 1e-3
    epsilon: float = FLOAT32_EPSILON
