"""The record of a device, made of what another tool's file says and of the file that it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.base.errors import InputError
from pipeline.base.machine import utc_now
from pipeline.measure.device.imports.reading import Reading
from pipeline.measure.device.record import Device, FileOnDevice, GoldenCheck, OnDevice, Source

_NO_ANSWERS = "the imported file holds no answers, times alone"
_SAME_SIZE = 1e-4
"""As a share: such files give a size to six digits."""


@dataclass(frozen=True, kw_only=True)
class TimedFile:
    """The file that was timed elsewhere, as whoever imports its times says.

    Attributes:
        name: of its target.
        format: of `FORMATS`.
        precision: of its weights.
        sha256: of its bytes.
        size: of them.
    """

    name: str
    format: str
    precision: Literal["int8", "float"]
    sha256: str
    size: int


def on_device(
    reading: Reading, path: Path, *, device: str | None, timed: TimedFile | None
) -> OnDevice:
    """The record of what a file says.

    Args:
        reading: what was read.
        path: of the file that was read.
        device: a name for the device; None for what the file's tool is.
        timed: the file that the times are of; None where that is not known.

    Raises:
        InputError: `timed` is not what was timed, by its format or size.
    """
    _refuse_another(reading, path, timed)
    units = dict.fromkeys(timing.unit for timing in reading.timings)
    whose = () if timed is None else (f"that {timed.name} was timed is the importer's word",)
    return OnDevice(
        measured_at=utc_now(),
        source=Source(kind="imported", tool=reading.tool, file=path.name),
        device=Device(name=device or reading.device),
        files=(
            FileOnDevice(
                name=timed.name if timed is not None else reading.model or path.name,
                format=timed.format if timed is not None else reading.format,
                precision=None if timed is None else timed.precision,
                sha256=None if timed is None else timed.sha256,
                runtime=reading.runtime,
                golden=tuple(
                    GoldenCheck(unit=unit, images=0, missing=_NO_ANSWERS) for unit in units
                ),
                timings=reading.timings,
                layers=reading.layers,
            ),
        ),
        notes=(*reading.notes, *whose),
        raw=(reading.raw,),
    )


def _refuse_another(reading: Reading, path: Path, timed: TimedFile | None) -> None:
    """Refuse times of a file that cannot be the one they are said to be of."""
    if timed is None:
        return
    if reading.format not in (None, timed.format):
        raise InputError(
            f"{path}: {reading.tool} times {reading.format} files, and {timed.name} is a "
            f"{timed.format} file; name the run of the file that was timed"
        )
    if reading.megabytes is None:
        return
    said = reading.megabytes * 1e6
    if abs(said - timed.size) > max(_SAME_SIZE * timed.size, 1):
        raise InputError(
            f"{path}: times a file of {reading.megabytes:.6g} MB, and that of {timed.name} has "
            f"{timed.size / 1e6:.6g} MB; name the run of the file that was timed"
        )
