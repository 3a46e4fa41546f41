"""The emulated machine: where it lies, how it is set up, and how a program is run on it.

It is an ordinary folder, which may be removed at any time:

    root/   Debian's Python 3.11 for ARM64 and its libraries
    site/   numpy, LiteRT and ONNX Runtime for ARM64
    qemu/   QEMU's user mode for this machine, and its libraries
    made.json   the versions and hashes of all that

Nothing of the machine that PocketNest runs on is changed, and root is not needed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.locks import held
from pipeline.base.safe_files import remove
from pipeline.measure.lanes.arm64 import apt, wheels
from pipeline.measure.lanes.arm64.apt import Tell
from pipeline.measure.lanes.arm64.packages import Packages, packages, pinned

MADE = "made.json"
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
LOADER = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
_TRIED = "import numpy, onnxruntime, ai_edge_litert.interpreter, json, os"
SET_UP = "nox -s arm64-setup"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An emulated machine that was set up.

    Attributes:
        folder: of it.
        made_of: what lies in it, which may be newer than what was pinned.
    """

    folder: Path
    made_of: Packages

    @property
    def emulator(self) -> str:
        """In words, such as QEMU 7.2."""
        found = self.made_of.versions.get("qemu-user:amd64", "of unknown version")
        return f"QEMU {found.rpartition(':')[2].partition('+')[0]}"

    def command(self, cpu: str, arguments: Sequence[str], more: Sequence[str] = ()) -> list[str]:
        """The command that runs Python on an emulated processor.

        QEMU is started by the loader and with the libraries of its own suite, so that those of
        this machine do not matter.

        Args:
            cpu: as QEMU names it.
            arguments: of Python.
            more: of QEMU.
        """
        qemu, root = self.folder / "qemu", self.folder / "root"
        libraries = os.pathsep.join(str(qemu / name) for name in _LIBRARIES)
        start = [
            str(qemu / LOADER),
            "--library-path",
            libraries,
            str(qemu / "usr/bin/qemu-aarch64"),
        ]
        # The seed is that of what a kernel gives a process to draw its random numbers from.
        options = ["-cpu", cpu, "-seed", "1", "-L", str(root), *more]
        return [*start, *options, str(root / f"usr/bin/python{wheels.PYTHON}"), *arguments]

    def environment(self, threads: int = 1) -> dict[str, str]:
        """All that a program on it finds in its environment: nothing of this process's."""
        return {
            "PYTHONPATH": str(self.folder / "site"),
            "PYTHONHASHSEED": "0",
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": str(threads),
            "LC_ALL": "C.UTF-8",
        }


def place(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of all emulated machines: $XDG_CACHE_HOME/pocketnest/arm64, or ~/.cache/..."""
    given = environment.get("XDG_CACHE_HOME", "")
    # What is relative there counts for nothing, by the rules of such folders.
    cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return cache / "pocketnest" / "arm64"


def found(folder: Path | None = None) -> Machine | None:
    """The machine that was set up for this version of PocketNest; None where none was."""
    wanted = (folder or place()) / pinned().key
    try:
        made_of = packages(json.loads((wanted / MADE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Machine(folder=wanted, made_of=made_of)


def set_up(tell: Tell, folder: Path | None = None) -> Machine:
    """The machine, which is made where it is not there: 70 MB are fetched, 330 MB unpacked.

    It is made beside its place, tried, and renamed: what has the name is whole. Of several
    processes one makes it, and the others wait.

    Args:
        tell: shows a line to the person at the terminal.
        folder: of all machines; `place()` where none is given.

    Raises:
        InputError: this machine cannot run or make it; says what is missing, and the fix.
    """
    folder = folder or place()
    if (there := found(folder)) is not None:
        return there
    if (missing := cannot_be_made()) is not None:
        raise InputError(f"the ARM64 machine is not set up, and cannot be made here: {missing}")
    wanted = pinned()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{wanted.key}.lock"
    with held(lock, lambda owner: tell(f"  the ARM64 machine is being made by {owner}: waiting")):
        if (there := found(folder)) is not None:
            return there
        for left in folder.glob(f".making-{wanted.key}-*"):
            remove(left)  # of a process that was killed
        tell(f"  making the ARM64 machine in {folder / wanted.key}: 70 MB are fetched")
        scratch = Path(tempfile.mkdtemp(prefix=f".making-{wanted.key}-", dir=folder))
        try:
            made = _make(wanted, scratch, tell)
            remove(folder / wanted.key)  # one that cannot be read
            scratch.rename(folder / wanted.key)
        finally:
            remove(scratch)
    return replace(made, folder=folder / wanted.key)


def cannot_be_made() -> str | None:
    """What this machine lacks to make or run one, and the fix; None where nothing."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{platform.system()} on {platform.machine()}"
        return f"QEMU's user mode is fetched for Linux on x86_64, and this is {here}; work there"
    for program, package in (("apt-get", "apt"), ("dpkg", "dpkg")):
        if shutil.which(program) is None:
            return (
                f"there is no {program}; it comes with Debian's package {package}: work on Debian "
                f"{pinned().suite}, such as in a container of it"
            )
    return None


def _make(wanted: Packages, scratch: Path, tell: Tell) -> Machine:
    """Fetch, unpack and try everything in `scratch`."""
    downloads = scratch / "downloads"
    debian, fetched = downloads / "debian", downloads / "wheels"
    debian.mkdir(parents=True)
    taken = apt.fetch(wanted.debian, debian, wanted.suite, tell)
    wheels.fetch(wanted.wheels, fetched)
    for package in taken:
        into = scratch / ("root" if package.architecture == "arm64" else "qemu")
        into.mkdir(exist_ok=True)
        file = debian / f"{package.name}_{package.architecture}.deb"
        subprocess.run(["dpkg", "--extract", str(file), str(into)], check=True)
    wheels.unpack(fetched, scratch / "site")
    remove(downloads)
    made = Machine(folder=scratch, made_of=replace(wanted, debian=tuple(taken)))
    _try(made)
    content = json.dumps(asdict(made.made_of), indent=1)
    (scratch / MADE).write_text(content, encoding="utf-8")
    return made


def _try(made: Machine) -> None:
    """Import the runtimes, which leaves Python's compiled modules behind: later starts are short.

    Raises:
        InputError: that does not work.
    """
    command = made.command("cortex-a53", ["-c", _TRIED])
    done = subprocess.run(command, env=made.environment(), capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise InputError(
            f"the ARM64 machine was fetched, and does not start: {words[0]}; please report it"
        )
