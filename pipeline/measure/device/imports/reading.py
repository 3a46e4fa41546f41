"""What a file of another tool's making says, before it is known which run it is of."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.measure.device.record import LayerTime, RawOutput, Timing


class NotRead(ValueError):
    """A file of a known kind that cannot be used; says why, and what would help."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a file says.

    Attributes:
        tool: that wrote it.
        device: a name for the device where the file gives none.
        runtime: as records name it; None where the file does not say.
        format: of `FORMATS`, of the file that was timed; None where this file does not say.
        model: name of the file that was timed; None where this file does not say.
        megabytes: size of that file, in units of 1e6 bytes; None where this file does not say.
        timings: one at least.
        layers: in the order of computation; none where the file does not say.
        notes: what a reader of the figures must know.
        raw: the file.
    """

    tool: str
    device: str
    runtime: str | None
    format: str | None
    timings: tuple[Timing, ...]
    raw: RawOutput
    model: str | None = None
    megabytes: float | None = None
    layers: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()


def joined(units: list[str]) -> str:
    """Several units as one name: `cpu+npu`."""
    return "+".join(sorted(set(units)))
