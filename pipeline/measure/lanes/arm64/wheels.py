"""Wheels for aarch64, fetched by pip with their hashes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.measure.lanes.arm64.packages import Wheel

_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
PYTHON = "3.11"
"""Of Debian's suite, whatever Python this process runs on."""


def fetch(wanted: Sequence[Wheel], folder: Path) -> None:
    """Download wheels into `folder`; pip refuses what its hash does not fit.

    Raises:
        InputError: pip failed; with its last words.
    """
    folder.mkdir(parents=True)
    lines = [f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in wanted]
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(lines), encoding="utf-8")
    options = ["--only-binary=:all:", "--no-deps", "--require-hashes", "--python-version", PYTHON]
    for platform in _PLATFORMS:
        options += ["--platform", platform]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += [*options, "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise InputError(f"pip download: {words[0]}; is the network there, and pip installed?")


def unpack(folder: Path, site: Path) -> None:
    """Unpack every wheel of a folder into `site`, as a folder of Python's path."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
