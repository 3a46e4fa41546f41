"""Android's `adb`, as a child process: one command on one phone.

phone = Adb(program="adb", serial="R5CT10")
phone.shell("getprop ro.product.model").out  # "Pixel 8"
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import InputError, printable

_SECONDS = 60.0
_DONE = "pocketnest-status:"
"""Printed with the exit status after every command: without it, the connection broke before."""
_MOST_SHOWN = 200


class Disconnected(InputError):
    """The phone was there and no longer answers."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command on the phone left: its exit status and its outputs."""

    status: int
    out: str
    errors: str

    @property
    def why(self) -> str:
        """Its last words, for a message."""
        lines = (self.errors.strip() or self.out.strip()).splitlines() or ["it says nothing"]
        return printable(lines[-1])[:_MOST_SHOWN]


def program() -> str:
    """Path of adb.

    Raises:
        InputError: it is not installed.
    """
    found = shutil.which("adb")
    if found is None:
        raise InputError(
            "adb: not found; install Android's platform-tools (Debian's package adb) and have "
            "them in PATH"
        )
    return found


def call(arguments: Sequence[str], seconds: float = _SECONDS) -> subprocess.CompletedProcess[bytes]:
    """Run adb itself.

    Raises:
        InputError: it does not come to its end.
    """
    command = [program(), *arguments]
    try:
        # Apart from the terminal: Ctrl-C is this process's to answer, which then cleans up.
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        words = " ".join(["adb", *arguments[:3]])
        raise InputError(f"{words}: no answer in {seconds:.0f} s; try `adb kill-server`") from None


@dataclass(frozen=True, kw_only=True)
class Adb:
    """One phone.

    Attributes:
        program: path of adb.
        serial: as `adb devices` lists it.
    """

    program: str
    serial: str

    def command(self, words: str) -> list[str]:
        """The command line that runs shell words on the phone, without a terminal there."""
        return [self.program, "-s", self.serial, "shell", "-T", words]

    def shell(self, words: str, *, given: Path | None = None, seconds: float = _SECONDS) -> Said:
        """Run shell words on the phone to their end.

        Args:
            words: of its shell.
            given: a file for the standard input; none where it is not given.
            seconds: that they may take.

        Raises:
            Disconnected: the phone is gone, or did not answer in that time.
        """
        whole = f"{{ {words}\n}}; echo {_DONE}$? >&2"
        with open(given or os.devnull, "rb") as source:
            # With `run`, an interruption kills adb before it goes on upwards.
            try:
                done = subprocess.run(
                    self.command(whole),
                    stdin=source,
                    capture_output=True,
                    timeout=seconds,
                    start_new_session=True,
                )
            except subprocess.TimeoutExpired:
                raise self.gone(f"no answer in {seconds:.0f} s") from None
        errors = done.stderr.decode(errors="replace")
        before, mark, status = errors.rpartition(_DONE)
        if not mark or not status.strip().isdigit():
            raise self.gone(" ".join(errors.split())[:_MOST_SHOWN] or "the connection was closed")
        out = done.stdout.decode(errors="replace")
        return Said(status=int(status), out=out, errors=before)

    def content(self, path: str, most: int) -> bytes:
        """The first bytes of a file on the phone, `most` of them at most; none where it is gone.

        Raises:
            Disconnected: as of `shell`.
        """
        said = self.shell(f"head -c {most} {path} | od -An -v -tx1")
        return bytes.fromhex("".join(said.out.split()))

    def gone(self, why: str) -> Disconnected:
        """What to raise where the phone does not answer."""
        return Disconnected(
            f"{self.serial}: the connection to the phone broke ({printable(why)}); "
            "connect it again and run the same command"
        )
