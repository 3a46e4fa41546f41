"""How the C library hands out memory, set for training."""

from __future__ import annotations

import ctypes
import platform

# mallopt's numbers for its parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory in place of giving it back to the system.

    Every training step frees and asks for the same large tensors. By default glibc returns them
    to the kernel and gets pages back that must be zeroed one by one, which takes a third of the
    time of a step. Other C libraries are left as they are.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(name, _KEPT) for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD)]
    return all(value == 1 for value in done)
