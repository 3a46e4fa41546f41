"""Clocks of a GPU or CPU as they are found; nothing is set."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from pipeline.measure.baseline.record import Clocks

_QUERY = "clocks.sm,clocks.mem,power.limit"
_CPUINFO = Path("/proc/cpuinfo")
_SECONDS = 20


def clocks_of(place: torch.device) -> Clocks | str:
    """The clocks of a device now, or why they are not known."""
    if place.type != "cuda":
        return cpu_clocks()
    # By its own name: nvidia-smi numbers GPUs otherwise than torch, which sees a part of them.
    return gpu_clocks(f"GPU-{torch.cuda.get_device_properties(place).uuid}")


def gpu_clocks(name: str, program: Sequence[str] = ("nvidia-smi",)) -> Clocks | str:
    """What nvidia-smi says of a GPU, or why it says nothing.

    Args:
        name: `GPU-` and its UUID.
        program: that is asked.
    """
    query = [f"--id={name}", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*program, *query], capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi cannot be run ({type(error).__name__})"
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[:200]
        return f"nvidia-smi ended with exit code {done.returncode}: {said or 'it said nothing'}"
    cells = [_number(cell) for cell in done.stdout.strip().split(",")]
    if len(cells) != 3 or cells[0] is None:
        return f"nvidia-smi gave no clocks: {done.stdout.strip()[:200] or 'nothing'}"
    return Clocks(
        source="nvidia-smi", core_mhz=cells[0], memory_mhz=cells[1], power_limit_w=cells[2]
    )


def cpu_clocks(file: Path = _CPUINFO) -> Clocks | str:
    """The median clock over the cores of this CPU, or why it is not known."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"{file} cannot be read ({error.strerror})"
    pairs = (line.partition(":") for line in lines)
    found = [_number(value) for key, _, value in pairs if key.strip() == "cpu MHz"]
    known = [value for value in found if value is not None]
    if not known:
        return f"{file} gives no clocks on this machine"
    return Clocks(
        source="/proc/cpuinfo", core_mhz=median(known), memory_mhz=None, power_limit_w=None
    )


def _number(text: str) -> float | None:
    """A figure above 0; None for `[N/A]` and the like."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
