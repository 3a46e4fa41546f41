"""The real command line, run as a user runs it, on a network narrow enough for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.making import HOUR, ROOT, server
from tests.making.recipes import NARROW, settings

LIGHT = {"--help", "--print-completion", "check", "init"}
"""What imports no torch, and is a process sooner than the server has begun."""


def command(*arguments: str | Path) -> list[str]:
    """The command line of this checkout, as a child process."""
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, with the checkout first on the path and no colours."""
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}


def process(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, in a process of its own, with all that it imports."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HOUR,
    )


def pocketnest(
    *arguments: str | Path, cwd: Path = ROOT, given: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, `given` on its standard input.

    Those that import nothing slow are processes of their own, the others the server's.
    """
    if str(arguments[0]) in LIGHT:
        return process(*arguments, cwd=cwd)
    words = list(map(str, arguments))
    done = server.become("tests.making.cli:main", words, cwd, environment(), given)
    return subprocess.CompletedProcess(
        words, done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode()
    )


def main(arguments: list[str]) -> int:
    """The program's own command line, in a process that may have run another program before."""
    from pipeline.__main__ import main

    sys.argv = ["pocketnest", *arguments]
    try:
        return main(arguments)
    except SystemExit as end:  # of argparse
        return end.code if isinstance(end.code, int) else 1


def narrow_run(
    recipes: Sequence[Path], out: Path, *overrides: str, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """`pocketnest run` on the narrow network."""
    extra = ["--fresh"] if fresh else []
    return pocketnest("run", *recipes, "--out", out, *extra, *settings(*NARROW, *overrides))
