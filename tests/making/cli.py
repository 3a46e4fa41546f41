"""The real command line, run as a user runs it, on a network narrow enough for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.making import ROOT
from tests.making.recipes import NARROW, settings


def command(*arguments: str | Path) -> list[str]:
    """The command line of this checkout, as a child process."""
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, with the checkout first on the path and no colours."""
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}


def pocketnest(
    *arguments: str | Path, cwd: Path = ROOT, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def narrow_run(
    recipes: Sequence[Path], out: Path, *overrides: str, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """`pocketnest run` on the narrow network."""
    extra = ["--fresh"] if fresh else []
    return pocketnest("run", *recipes, "--out", out, *extra, *settings(*NARROW, *overrides))
