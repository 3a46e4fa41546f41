"""What there is to say of pruning's layers: those that stay whole, and why; without torch."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from pipeline.base.record import Positive, Record, Text

BY_NORM = "l1"
"""Criterion of channels that `bn_scale` says nothing of: their factors' norm is l1, too."""
_NAMED = 3


class Kept(Record):
    """A layer whose outputs all stay.

    Attributes:
        layer: its path.
        channels: that it makes.
        reason: why they all stay.
    """

    layer: Text
    channels: Positive
    reason: Text


def by_reason(kept: Iterable[Kept]) -> list[str]:
    """Layers that stay for the same reason together, the first of them by name.

    Reasons that differ by numbers alone count as the same; the first layer's is given.
    """
    alike: defaultdict[str, list[Kept]] = defaultdict(list)
    for one in kept:
        alike[re.sub(r"[\d.]+", "0", one.reason)].append(one)
    told = []
    for layers in alike.values():
        names = ", ".join(one.layer for one in layers[:_NAMED])
        more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
        told.append(f"{names}{more}: {layers[0].reason}")
    return told
