"""What a file costs an app before it answers for the second time: loading, first call, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from pipeline.base.record import Above0, Record

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.formats.format import Runnable

_TIMES = 3
_STATM = Path("/proc/self/statm")
_MEGABYTE = 1e6


class FirstUse(Record):
    """Of a file whose runtime is loaded already.

    Attributes:
        load_ms: to open it, until it can be given an image; the median of three.
        first_ms: of the first call, which sets up what later calls find; the median of three.
        memory_mb: resident memory that opening and the first call add; None where it is less than
            can be told, or the system does not say.
    """

    load_ms: Above0
    first_ms: Above0
    memory_mb: Above0 | None


def first_use(open_file: Callable[[], Runnable], image: Tensor) -> FirstUse:
    """Open a file a few times and run it once each time.

    Args:
        open_file: gives it, ready for an image.
        image: float32 (1, channels, height, width), as the file takes it.
    """
    given = image.numpy()
    opened, loads, firsts, added = [], [], [], []
    open_file().invoke()  # the runtime itself is loaded now
    for _ in range(_TIMES):
        before, began = _resident_mb(), time.perf_counter()
        runnable = open_file()
        loaded = time.perf_counter()
        runnable.set_input(given)
        runnable.invoke()
        loads.append((loaded - began) * 1e3)
        firsts.append((time.perf_counter() - loaded) * 1e3)
        added.append(_resident_mb() - before)
        opened.append(runnable)  # what is let go would be given to the next one
    most = max(added)
    return FirstUse(
        load_ms=median(loads), first_ms=median(firsts), memory_mb=most if most > 0 else None
    )


def _resident_mb() -> float:
    """Resident memory of this process in units of 1e6 bytes; 0 where the system does not say."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    import resource

    return pages * resource.getpagesize() / _MEGABYTE
