"""Debian packages for other architectures, without a word of it to the machine's own apt.

apt is given a state, a cache and architectures of its own, in a folder that is thrown away; the
machine's mirrors and their keys are used. `dpkg --add-architecture` would change the machine, and
needs root.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base.errors import InputError, listed
from pipeline.measure.lanes.arm64.packages import Package

_CONFIGURATION = """\
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; "arm64"; }};
APT::Sandbox::User "root";
APT::Update::Post-Invoke "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""
Tell = Callable[[str], None]


def fetch(wanted: Sequence[Package], folder: Path, suite: str, tell: Tell) -> list[Package]:
    """Download packages into `folder`, a new one; the files are named NAME_ARCHITECTURE.deb.

    A mirror keeps the newest version of a package alone, so that a pinned one is gone as soon as
    a security fix replaces it. Then the version that the mirror has is taken, which apt's signed
    index vouches for in place of the pin, and that is told. It is rather that than a lane that
    works for some weeks: runtimes and numpy, which compute the answers, are wheels and stay.

    Args:
        wanted: the pinned ones.
        folder: gets the files; apt's own are in it, too.
        suite: of Debian, for messages.
        tell: shows a line to the person at the terminal.

    Returns:
        What was taken, in the same order.

    Raises:
        InputError: the mirror has none of a name, or a file is not what its hash says.
    """
    environment = _private(folder)
    _run(["apt-get", "-qq", "update"], environment, folder)
    offered = _offered([package.place for package in wanted], environment, folder)
    if missing := [package.place for package in wanted if not offered.get(package.place)]:
        raise InputError(
            f"the mirrors of this machine's apt have no {listed(missing)}; they must be those of "
            f"Debian's suite {suite}: add it to /etc/apt/sources.list.d, or work on such a machine"
        )
    taken = [_chosen(package, offered[package.place], tell) for package in wanted]
    names = [f"{package.place}={package.version}" for package in taken]
    _run(["apt-get", "-qq", "download", *names], environment, folder)
    for package in taken:
        _take(package, folder)
    return taken


def _private(folder: Path) -> dict[str, str]:
    """An environment in which apt works in `folder`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    configuration = folder / "apt.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder), encoding="utf-8")
    return os.environ | {"APT_CONFIG": str(configuration), "LC_ALL": "C"}


def _run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """What a command says.

    Raises:
        InputError: it failed; with its last words.
    """
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise InputError(f"{' '.join(command[:3])}: {words[0]}; is the network there?")
    return done.stdout


def _offered(
    places: Sequence[str], environment: Mapping[str, str], folder: Path
) -> dict[str, list[Package]]:
    """What the mirrors have, the newest first, by `Package.place`."""
    done = subprocess.run(
        # Of names that it does not know it says so, and shows the others.
        ["apt-cache", "show", *places],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    found: dict[str, list[Package]] = {}
    for record in done.stdout.split("\n\n"):
        lines = (line.partition(": ") for line in record.splitlines() if not line.startswith(" "))
        values = {name: value for name, _, value in lines}
        if {"Package", "Architecture", "Version", "SHA256"} <= values.keys():
            package = Package(
                name=values["Package"],
                architecture=values["Architecture"],
                version=values["Version"],
                sha256=values["SHA256"],
            )
            found.setdefault(package.place, []).append(package)
    return found


def _chosen(package: Package, offered: Sequence[Package], tell: Tell) -> Package:
    """The pinned version where the mirrors have it, else the newest of theirs."""
    if any(one.version == package.version for one in offered):
        return package
    newest = offered[0]
    tell(
        f"  {package.place} {package.version} is pinned and has left the mirrors: "
        f"{newest.version} is taken"
    )
    return replace(package, version=newest.version, sha256=newest.sha256)


def _take(package: Package, folder: Path) -> None:
    """Give a file its short name.

    Raises:
        InputError: it is not there, or not what its hash says.
    """
    # As apt names files; the epoch's colon is %3a there.
    version = package.version.replace(":", "%3a")
    file = folder / f"{package.name}_{version}_{package.architecture}.deb"
    if not file.is_file():
        raise InputError(f"{file.name}: apt-get has not downloaded it; run the command again")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise InputError(
            f"{file.name}: its SHA-256 is {found[:12]}, and {package.sha256[:12]} is what it must "
            "be; nothing of it is used; is the mirror what it should be?"
        )
    file.rename(folder / f"{package.name}_{package.architecture}.deb")
