"""Files and folders that must be what they seem: no pipe to wait for, no link to write through.

A folder of runs may come from anywhere. A pipe in the place of a file would stop the program
forever, a device fill its memory, and a link lead what it writes or removes out of the folder.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.base.errors import InputError

_MOST_JSON = 64 * 2**20
_DEEPEST = 200
"""Lists and objects in one another. What is read here has a dozen levels at most."""
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
"""A string of JSON, or the rest of a text where it does not end."""
_BRACKET = re.compile(r"[\[\]{}]")


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; pipes, devices and folders are none.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    # Not blocking: to open a pipe would wait until somebody writes into it.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "is not a file", str(path))
    return os.fdopen(number, "rb")


def content_of(path: Path, most: int) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        OSError: it cannot be read, is no file, or is larger.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"is larger than {most / 2**20:.0f} MiB", str(path))
        return file.read(most)


def json_of(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
    """
    return parsed(content_of(path, _MOST_JSON).decode("utf-8"))


def parsed(text: str) -> Any:
    """What a JSON text of another's making holds.

    Raises:
        ValueError: it is no JSON, or is nested too deeply.
    """
    # Python's reader goes as deep as its limit of calls lets it, and libraries raise that so far
    # that the stack would overflow first. To lower it for a moment would lower it for all threads.
    if _depth(text) > _DEEPEST:
        raise ValueError("is nested too deeply")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _depth(text: str) -> int:
    """How many brackets of a JSON text are open at the same time, at most."""
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def refuse_to_write(path: Path) -> None:
    """Refuse to write a file where something else is than a file.

    Raises:
        InputError: there is a link, a folder, a pipe or a device.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a link" if path.is_symlink() else "no file"
        raise InputError(f"{path}: is {kind}, so nothing is written there; remove it")


def refuse_outputs(*, files: Iterable[Path] = (), folders: Iterable[Path] = ()) -> None:
    """Refuse what a command is to write where it cannot, or may not, be written.

    Every command that writes somewhere calls this before it does any work: an hour of timing is
    not to end with a link in the way.

    Args:
        files: that will be written, or written over.
        folders: of the command's own, to which it will add files; they need not be there yet.

    Raises:
        InputError: a link, or something of another kind, stands in the place of one, or the
            folder around a file is not there or cannot be written to.
    """
    for folder in folders:
        refuse_link(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is no folder, and one is to be made there; remove it")
    for file in files:
        refuse_to_write(file)
        if not file.parent.is_dir():
            raise InputError(f"{file}: its folder is not there; make it, or name another file")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise InputError(f"{file}: its folder cannot be written to; name another file")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees it whole, the old one or the new one.

    That holds even if the machine stops. A link is replaced, not followed. The folder must exist.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_link(folder: Path) -> None:
    """Refuse to work in a folder that is somewhere else.

    Raises:
        InputError: it is a link.
    """
    if folder.is_symlink():
        raise InputError(
            f"{folder}: is a link, and nothing is written through links; put the folder itself "
            "there, or give --out the folder it leads to"
        )


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, not what it leads to.

    Unlike `shutil.rmtree`, which opens what it is given, a pipe is removed and not waited for.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def real(path: Path) -> Path:
    """Where a path leads; unlike `resolve`, also where links go round in a circle."""
    return Path(os.path.realpath(path))
