"""An audit hook that notes every write outside of some folders, and all unpickling."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ANYWHERE = ("/dev/null", "/dev/tty", "/proc/self/", "/dev/shm/sem.")
# By the name of the event: which arguments are paths, each with where its dir_fd stands, and
# whether the last part of the path is followed where it is a link.
_CHANGES: dict[str, tuple[tuple[tuple[int, int | None], ...], bool]] = {
    "os.mkdir": (((0, 2),), False),
    "os.remove": (((0, 1),), False),
    "os.rmdir": (((0, 1),), False),
    "os.rename": (((0, 2), (1, 3)), False),
    "os.link": (((1, 3),), False),
    "os.symlink": (((1, 2),), False),
    "os.truncate": (((0, None),), True),
    "os.chmod": (((0, 2),), True),
    "os.chown": (((0, 3),), True),
    "os.utime": (((0, 3),), True),
    "os.setxattr": (((0, None),), True),
    "os.removexattr": (((0, None),), True),
}
_PROGRAMS = {"os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn"}


def watch(allowed: Sequence[Path], report: int) -> None:
    """From now on, write a line to the file descriptor `report` for all that must not be done.

    Args:
        allowed: folders that may be written to.
        report: gets the lines.
    """
    roots = tuple(os.path.realpath(folder) + os.sep for folder in allowed)

    def may_write(path: str) -> bool:
        return (path + os.sep).startswith(roots) or path.startswith(_ANYWHERE)

    def note(event: str, what: object) -> None:
        os.write(report, f"{event}: {what!r}\n".encode("utf-8", "backslashreplace"))

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not isinstance(path, int) and isinstance(flags, int) and flags & _WRITES:
                real = _real(path, None, follow=True)
                if real is not None and not may_write(real):
                    note(event, real)
        elif event in _CHANGES:
            places, follow = _CHANGES[event]
            for at, folder_at in places:
                folder = None if folder_at is None else args[folder_at]
                real = _real(args[at], folder, follow=follow)
                if real is None or may_write(real):
                    continue
                if event != "os.mkdir" or not os.path.lexists(real):  # else nothing comes of it
                    note(event, real)
        elif event == "subprocess.Popen":
            if args[0] not in (sys.executable, "git"):
                note(event, args[:2])
        elif event in _PROGRAMS or event == "pickle.find_class":
            note(event, args)

    sys.addaudithook(hook)


def _real(path: object, folder: object, *, follow: bool) -> str | None:
    """Where a path leads; None where it cannot lead anywhere."""
    if isinstance(path, int):  # an open file: what may be opened was asked then
        return None
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
        if follow:
            return os.path.realpath(text)
        head, tail = os.path.split(os.path.abspath(text))
        return os.path.join(os.path.realpath(head), tail)
    except (OSError, TypeError, ValueError):
        return None
