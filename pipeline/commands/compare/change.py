"""One figure of two runs, and how much worse it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["regression", "worse", "changed", "better", "same", "unknown"]
ORDER: tuple[Verdict, ...] = ("regression", "worse", "changed", "unknown", "better", "same")
"""Worst first."""


@dataclass(frozen=True, kw_only=True)
class Allowances:
    """How much worse a run may be before it is a regression.

    Attributes:
        accuracy_drop_pt: percentage points of the primary figure lost.
        size_growth: share of the file's bytes.
        latency_growth: share of the median time.
        significance: a loss of accuracy counts where chance alone would give it less often.
    """

    accuracy_drop_pt: float = 0.5
    size_growth: float = 0.02
    latency_growth: float = 0.1
    significance: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of one target, before and after.

    Attributes:
        target: name of its recipe.
        what: changed.
        before: in words.
        after: in words.
        note: how much, and how sure that is.
        verdict: how bad it is.
    """

    target: str
    what: str
    before: str
    after: str
    note: str
    verdict: Verdict
