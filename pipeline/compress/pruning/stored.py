"""What a file format spends on a network's parts; known without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes for one weight, one output channel, one of a pool's convolution, and one layer."""

    weight: int
    channel: int
    pool_channel: int
    layer: int
