"""One call on a Mac: a script and an archive go there over one connection, lines come back.

    with opened(Mac(host="me@mac")) as session:
        for event in session.run(archive):
            ...

Nothing stays on the Mac, however this ends. The script listens to the connection; once it is
closed, or no byte came for two minutes, it removes its folder and ends. `ssh` is the system's own.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.signals import uninterrupted

SCRIPT = Path(__file__).with_name("on_mac.py")
BEAT_SECONDS = 10.0
_END_SECONDS = 20.0
_SSH = (
    "ssh",
    "-T",
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=20",
    "-o",
    "ServerAliveInterval=15",
)
_CONNECTION_LOST, _NOT_FOUND = 255, 127
Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Mac:
    """Where the packages run.

    Attributes:
        host: as ssh takes it, `user@name`; None for this machine.
        python: the interpreter there, with coremltools and numpy.
    """

    host: str | None
    python: str

    @property
    def title(self) -> str:
        """For people."""
        return self.host or "this Mac"

    def command(self, script_bytes: int) -> list[str]:
        """What is started here: Python there, which reads its program from standard input."""
        program = (
            f'import sys; exec(compile(sys.stdin.buffer.read({script_bytes}), "on_mac.py", "exec"))'
        )
        if self.host is None:
            return [self.python, "-u", "-c", program]
        there = " ".join(map(shlex.quote, (self.python, "-u", "-c", program)))
        return [*_SSH, "--", self.host, there]


class Session:
    """A call that has begun."""

    def __init__(self, mac: Mac) -> None:
        self._mac = mac
        self._script = SCRIPT.read_bytes()
        try:
            # A session of its own: what is typed at the terminal is this process's to answer.
            self._process = subprocess.Popen(
                mac.command(len(self._script)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            what = "ssh" if mac.host is not None else mac.python
            raise InputError(f"{what}: cannot be started ({error.strerror})") from error
        self._said = b""
        self._over = threading.Event()
        self.folder: str | None = None
        self.removed = False
        threading.Thread(target=self._read_errors, daemon=True).start()

    def run(self, archive: bytes) -> Iterator[Event]:
        """Send the script and the archive; what the script says, as it comes.

        Raises:
            InputError: there is no connection, no Python or no package of it, or the connection or
                the Mac's disk failed.
        """
        head = {"bytes": len(archive), "sha256": hashlib.sha256(archive).hexdigest()}
        sender = threading.Thread(
            target=self._send, args=(json.dumps(head).encode() + b"\n" + archive,), daemon=True
        )
        sender.start()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = _event(line)
            if event is None:
                continue  # what a shell's own files print
            self._note(event)
            yield event
        if not self.removed:
            raise InputError(self._why())

    @uninterrupted()
    def close(self) -> None:
        """End the call; the script removes what it has there."""
        self._over.set()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def left(self) -> str | None:
        """What may still lie on the Mac; None where nothing does."""
        if self.folder is None or self.removed or self._process.returncode == 0:
            return None
        return (
            f"{self._mac.title}: {self.folder} is removed there as soon as the connection is found "
            "to be gone, at the latest after two minutes, or else by the next call"
        )

    def _note(self, event: Event) -> None:
        if event["pocketnest"] == "folder":
            self.folder = str(event["path"])
        elif event["pocketnest"] == "done":
            self.removed = bool(event["removed"])
        elif event["pocketnest"] == "missing":
            raise InputError(
                f"{self._mac.title}: {event['what']}; install it there with 'python3 -m pip "
                "install coremltools numpy pillow', or name another Python with --python"
            )
        elif event["pocketnest"] == "failed":
            raise InputError(f"{self._mac.title}: {event['what']}; nothing was measured")

    def _send(self, content: bytes) -> None:
        """Send everything, and then a byte now and then, until the call is over."""
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(OSError, ValueError):  # closed: the process has ended, or is to end
            stdin.write(self._script + content)
            stdin.flush()
            while not self._over.wait(BEAT_SECONDS):
                stdin.write(b"\n")
                stdin.flush()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said = (self._said + line)[-4000:]

    def _why(self) -> str:
        """Why a call ended early, in one line."""
        status = self._process.wait()
        lines = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "it says no more")
        title = self._mac.title
        if self.folder is not None:
            return (
                f"{title}: the connection broke, or the script there was ended ({last}); try again"
            )
        if status == _NOT_FOUND:
            return f"{title}: no {self._mac.python} there ({last}); name one with --python"
        if status == _CONNECTION_LOST:
            return (
                f"{title}: no connection by ssh ({last}); it must work without a password, as "
                f"'ssh {title} true' shows"
            )
        return f"{title}: {self._mac.python} failed there ({last})"


def _event(line: bytes) -> Event | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "pocketnest" in found else None


@contextmanager
def opened(mac: Mac) -> Iterator[Session]:
    """A call, ended and cleaned up in every case.

    Raises:
        InputError: it cannot be started.
    """
    with ExitStack() as last:
        with uninterrupted():  # from the start on there is something to end
            session = Session(mac)
            last.callback(session.close)
        yield session


def this_python() -> str:
    """The interpreter that runs this."""
    return sys.executable
