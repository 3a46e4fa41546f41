"""A try to reach a time by pruning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Widths that were tried: predicted and measured share of the unpruned file's time."""

    widths: dict[str, int]
    predicted: float
    measured: float
