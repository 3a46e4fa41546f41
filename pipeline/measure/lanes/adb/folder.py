"""A folder on the phone that is gone afterwards, however this program ends.

    with Folder(phone).open() as folder:
        folder.push(file, "model.tflite")
        folder.run("./runner --graph=model.tflite")

A shell on the phone makes the folder, waits for this program's heartbeat on its standard input,
and removes the folder when that ends: by a word, or because the connection closed, as it does when
this program is killed or the cable is pulled. A second process there, which nothing connects with
this side, looks every few seconds whether the heartbeat still comes. So what remains after a
killed program is nothing. Where the phone itself was switched off, the next call cleans up.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pipeline.base.checksums import hash_of
from pipeline.base.errors import InputError, printable
from pipeline.base.signals import uninterrupted
from pipeline.measure.lanes.adb.adb import Adb, Disconnected, Said

PLACE = "/data/local/tmp"
"""Where the shell of a phone may write and run programs."""
PREFIX = "pocketnest-"
SILENT = 60
"""Seconds without a heartbeat after which the phone removes the folder by itself."""
_BEAT, _ANSWER = 1.0, 20.0
_STEP = 5
"""Seconds between two looks for the heartbeat."""
_SWEEP = 10
"""Seconds that an earlier folder's heartbeat is waited for."""
_PUSH_SECONDS = 900.0

# `-nt` compares times of files, in seconds at worst. Touching a file needs no room on a full disk.
# A program that still runs holds the processor: it is ended, too, if it is really this folder's. A
# file that is just being copied can come to the folder while that is removed: hence several times.
_GUARD = r"""
f={folder}
trap '' HUP INT TERM PIPE
mkdir "$f" || exit 1
: > "$f/.beat"; : > "$f/.pid"; : > "$f/.seen"
clean() {{
    p=$(cat "$f/.pid" 2> /dev/null)
    case "$p" in ''|*[!0-9]*) ;; *)
        case "$(tr '\0' ' ' < /proc/$p/cmdline)" in *"$f/"*) kill -9 "$p";; esac;;
    esac 2> /dev/null
    for i in 1 2 3 4 5; do
        rm -rf "$f"
        [ -d "$f" ] || return
        sleep 1
    done
}}
(
    n=0
    while [ "$n" -lt {silent} ]; do
        sleep {step}
        [ -d "$f" ] || exit
        if [ "$f/.beat" -nt "$f/.seen" ]; then n=0; : > "$f/.seen"; else n=$((n + {step})); fi
    done
    clean
) < /dev/null > /dev/null 2>&1 &
echo ready
while read -r line; do
    [ "$line" = end ] && break
    : > "$f/.beat"
done
clean
[ -d "$f" ] || echo removed
"""
_SWEEPER = r"""
old=
for f in {place}/{prefix}*; do
    [ -d "$f" ] && : > "$f/.seen" && old="$old $f"
done
[ -z "$old" ] && exit 0
sleep {sweep}
for f in $old; do
    [ "$f/.beat" -nt "$f/.seen" ] || {{ rm -rf "$f" && echo "$f"; }}
done
"""


@dataclass(kw_only=True)
class Folder:
    """A fresh folder on a phone.

    Attributes:
        phone: whose.
        place: folder that it is made in.
        silent: seconds after which the phone removes it where no heartbeat comes.
        path: of the folder.
        left: what could not be removed, in words; None where all is gone.
    """

    phone: Adb
    place: str = PLACE
    silent: int = SILENT
    path: str = field(default="", init=False)
    left: str | None = field(default=None, init=False)

    @contextlib.contextmanager
    def open(self) -> Iterator[Folder]:
        """Make it, and remove it at the end, whatever the end is.

        Raises:
            InputError: it cannot be made; `Disconnected` where the phone is gone.
        """
        self.path = f"{self.place}/{PREFIX}{secrets.token_hex(8)}"
        step = min(_STEP, self.silent)
        script = _GUARD.format(folder=self.path, silent=self.silent, step=step)
        with contextlib.ExitStack() as last:
            with uninterrupted():  # from the start on there is something to end
                process = subprocess.Popen(
                    self.phone.command(script),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                last.callback(self._close, process)
            assert process.stdin is not None
            assert process.stdout is not None
            if _line(process.stdout, _ANSWER) != "ready":
                self._refuse(process)
            ended = threading.Event()
            beating = threading.Thread(target=_beat, args=(process.stdin, ended), daemon=True)
            beating.start()
            last.callback(_stopped, beating, ended)
            yield self

    def _refuse(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace").split()
        words = printable(" ".join(said))[:200] or "the phone did not answer"
        raise InputError(f"{self.phone.serial}: no folder could be made in {self.place} ({words})")

    @uninterrupted()
    def _close(self, process: subprocess.Popen[bytes]) -> None:
        """Have the phone remove the folder, and say so where it could not be seen to."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            process.stdin.write(b"end\n")
            process.stdin.flush()
        removed = _line(process.stdout, _ANSWER) == "removed"
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        if not removed and not self._is_gone():
            self.left = (
                f"{self.path} on {self.phone.serial} could not be seen removed: the phone removes "
                f"it by itself {self.silent} s after it lost the connection; if it was switched "
                "off, the next `pocketnest device` with it does"
            )

    def _is_gone(self) -> bool:
        """Whether the phone, connected again, no longer has the folder."""
        for _ in range(5):
            with contextlib.suppress(Disconnected):
                if self.phone.shell(f"[ -e {self.path} ]", seconds=5).status:
                    return True
            time.sleep(0.5)
        return False

    def push(self, file: Path, name: str, *, program: bool = False) -> str:
        """Copy a file into the folder and read its hash back.

        Args:
            file: of this machine.
            name: in the folder.
            program: it is to be run.

        Returns:
            SHA-256 of the bytes on the phone.

        Raises:
            InputError: there is no room, or other bytes arrived; `Disconnected` where the phone
                is gone.
        """
        path = f"{self.path}/{name}"
        mode = f" && chmod 700 {path}" if program else ""
        # Not `adb push`, which would make the folder again where it was removed.
        words = f"cat > {path}{mode} && sha256sum {path}"
        said = self.phone.shell(words, given=file, seconds=_PUSH_SECONDS)
        found, wanted = said.out.split(" ")[0].strip(), hash_of(file)
        if said.status:
            self._refuse_push(file, said)
        if found != wanted:
            raise InputError(
                f"{self.phone.serial}: {name} arrived as other bytes (SHA-256 {found[:12]}, and "
                f"{wanted[:12]} here); try another cable or port"
            )
        return found

    def _refuse_push(self, file: Path, said: Said) -> None:
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        if "no space" in said.errors.lower():
            raise InputError(
                f"{self.phone.serial}: no room left in {self.place} for {file.name} ({size}); "
                "free some and run the same command again"
            )
        raise InputError(
            f"{self.phone.serial}: {file.name} ({size}) could not be copied into {self.place}: "
            f"{said.why}"
        )

    def run(self, words: str, seconds: float) -> Said:
        """Run a program of the folder, by its full path first in `words`, to its end.

        Raises:
            InputError: the folder is gone; `Disconnected` where the phone is.
        """
        said = self.phone.shell(
            f"sh -c 'echo $$ > {self.path}/.pid && exec {words}'", seconds=seconds
        )
        if said.status and self.phone.shell(f"[ -d {self.path} ]").status:
            raise InputError(
                f"{self.phone.serial}: the phone removed {self.path}: it had no word from this "
                f"machine for {self.silent} s; run the same command again"
            )
        return said


def sweep(phone: Adb, place: str = PLACE, seconds: int = _SWEEP) -> list[str]:
    """Remove folders of earlier calls whose heartbeat no longer comes.

    Such remain where the phone was switched off in the middle.

    Returns:
        Those that were removed.

    Raises:
        Disconnected: the phone is gone.
    """
    words = _SWEEPER.format(place=place, prefix=PREFIX, sweep=seconds)
    return phone.shell(f"({words})").out.split()


def _beat(pipe: IO[bytes], ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        try:
            pipe.write(b"\n")
            pipe.flush()
        except (OSError, ValueError):  # the connection broke; whoever runs something there says so
            return


def _stopped(beating: threading.Thread, ended: threading.Event) -> None:
    ended.set()
    beating.join(_ANSWER)


def _line(pipe: IO[bytes], seconds: float) -> str | None:
    """The next line of a child; None where none comes in that time."""
    found: list[bytes] = []
    reading = threading.Thread(target=_into(found, pipe), daemon=True)
    reading.start()
    reading.join(seconds)
    return found[0].decode(errors="replace").strip() if found else None


def _into(found: list[bytes], pipe: IO[bytes]) -> Callable[[], None]:
    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            found.append(pipe.readline())

    return read
