"""Errors that pass, told from content that is wrong: for them nothing may be thrown away.

A state that cannot be read because memory ran out, a network drive was gone for a moment or too
many files were open is as good as it was. Only what was read and found wrong may be set aside.
"""

from __future__ import annotations

import errno

from pipeline.base.disk import causes

_OF_WHAT_IS_THERE = {
    errno.EFBIG,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
}
"""What an operating system says of something that is missing or of another kind than a file."""

_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "bad_alloc")
"""What torch says, of the machine's memory and of a device's, in a RuntimeError."""


def is_passing(error: BaseException) -> bool:
    """Whether something may be read another time that could not be read now."""
    return any(_passes(cause) for cause in causes(error))


def _passes(error: BaseException) -> bool:
    if isinstance(error, OSError):
        # Libraries raise OSErrors without a number, too, of content that they do not understand.
        return error.errno is not None and error.errno not in _OF_WHAT_IS_THERE
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
