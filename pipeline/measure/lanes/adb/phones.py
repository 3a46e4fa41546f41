"""Which phone: what `adb devices` lists, and the one that is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.base.errors import InputError, listed
from pipeline.measure.lanes.adb.adb import Adb, call, program

_LINE = re.compile(r"^(\S+)\s+(no permissions|\S+)\s*(.*)$")
_FIXES = {
    "unauthorized": "unlock it and allow USB debugging for this computer",
    "authorizing": "unlock it, and run this again in a moment",
    "offline": "connect it anew, or run `adb reconnect offline`",
    "no permissions": "this user may not open its USB device: see adb's udev rules",
}
READY = "device"
"""What adb calls a phone that can be used."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str | None

    @property
    def words(self) -> str:
        """For a message."""
        known = [self.model] if self.model else []
        known += [self.state] if self.state != READY else []
        return f"{self.serial} ({', '.join(known)})" if known else self.serial


def chosen(serial: str | None) -> Adb:
    """The phone that is meant.

    Args:
        serial: as `adb devices` lists it; None where there is only one.

    Raises:
        InputError: none, several without a serial, or one that cannot be used now; adb is not
            installed or does not work.
    """
    phone = choice(phones(), serial)
    return Adb(program=program(), serial=phone.serial)


def phones() -> list[Listed]:
    """All that adb lists.

    Raises:
        InputError: adb is not installed or does not work.
    """
    done = call(["devices", "-l"])
    if done.returncode:
        words = done.stderr.decode(errors="replace").split()
        raise InputError(f"adb devices: exit status {done.returncode}: {' '.join(words)[:200]}")
    return parsed(done.stdout.decode(errors="replace"))


def parsed(text: str) -> list[Listed]:
    """The lines of `adb devices -l`."""
    found = []
    for line in text.splitlines():
        if line.startswith(("*", "List of devices")) or (match := _LINE.match(line)) is None:
            continue
        model = re.search(r"\bmodel:(\S+)", match[3])
        name = None if model is None else model[1].replace("_", " ")
        found.append(Listed(serial=match[1], state=match[2], model=name))
    return found


def choice(found: Sequence[Listed], serial: str | None) -> Listed:
    """The one that is meant; see `chosen`."""
    if not found:
        raise InputError(
            "no phone is connected: adb lists none; connect one by USB with USB debugging on, or "
            "with `adb connect ADDRESS:PORT`"
        )
    meant = [phone for phone in found if serial in (None, phone.serial)]
    if not meant:
        raise InputError(
            f"--serial {serial}: not connected; adb lists {listed(p.words for p in found)}"
        )
    if len(meant) > 1:
        raise InputError(
            f"{len(meant)} phones are connected: {listed(p.words for p in meant)}; name one with "
            "--serial"
        )
    (phone,) = meant
    if phone.state != READY:
        fix = _FIXES.get(phone.state, "have it run Android, with USB debugging on")
        raise InputError(f"{phone.serial}: the phone is {phone.state}; {fix}")
    return phone
