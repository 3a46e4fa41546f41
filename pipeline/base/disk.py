"""What a disk refused, told from other errors: libraries wrap it in exceptions of their own."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = _FULL | {errno.EACCES, errno.EIO, errno.ENOTDIR, errno.EPERM, errno.EROFS}
_NO_SPACE = 256 * 1024
"""Bytes; with less than this left, a failed write failed for lack of space."""

_TEXTS = (
    *(os.strerror(number) for number in sorted(_REFUSED - {errno.EPERM, errno.ENOTDIR})),
    "iostream error",  # a C++ stream, in torch
    "file write failed",  # torch's zip files
)
"""What libraries say that do not pass the number of the error on."""


def is_full(error: BaseException, directory: Path) -> bool:
    """Whether `error` came of a full disk, that of `directory`."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if any(os.strerror(number) in str(cause) for number in _FULL):
            return True
    try:
        return shutil.disk_usage(directory).free < _NO_SPACE
    except OSError:
        return False


def refusal(error: BaseException) -> str | None:
    """What a disk refused where `error` came of that, in one line; None for other errors."""
    for cause in causes(error):
        of_a_file = cause is error and isinstance(error, OSError) and error.filename is not None
        if isinstance(cause, OSError) and (cause.errno in _REFUSED or of_a_file):
            where = "" if cause.filename is None else f"{cause.filename}: "
            return f"{where}{cause.strerror}"
        if any(text in str(cause) for text in _TEXTS):
            return " ".join(str(cause).split())
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came of, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
