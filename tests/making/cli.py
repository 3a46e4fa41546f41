"""The real command line, run as a user runs it, on a network narrow enough for tests."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.making import HOUR, ROOT, server, shared
from tests.making.recipes import DEVICE_RECIPES, NARROW, settings

LIGHT = {"--help", "--print-completion", "check", "init"}
"""What imports no torch, and is a process sooner than the server has begun."""
WRITERS = '"-P -m pipeline.formats."*|"-P -m pipeline.commands.bench.peers.child"'
"""Programs that write a file, as a pattern of a shell's `case`."""


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

    Those that import nothing slow are processes of their own, the others the server's in a session
    of tests. What a library reads from the environment when it is imported needs `process`.
    """
    if str(arguments[0]) in LIGHT or not shared.begun():
        return process(*arguments, cwd=cwd)
    words = list(map(str, arguments))
    done = server.become("tests.making.cli:main", words, cwd, environment(), given)
    return subprocess.CompletedProcess(
        words, done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode()
    )


def main(arguments: list[str]) -> int:
    """The program's own command line, in a process of the server's."""
    from pipeline.__main__ import main

    beside = str(Path(sys.executable).parent)  # programs that onnx2tf calls
    os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    sys.argv, sys.executable = ["pocketnest", *arguments], python_for_writers()
    try:
        return main(arguments)
    except SystemExit as end:  # of argparse
        return end.code if isinstance(end.code, int) else 1


def narrow_device_runs(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`pocketnest run` of the device recipes on the narrow network, in a process of its own."""
    return process("run", *DEVICE_RECIPES.values(), "--out", out, *settings(*NARROW), *options)


def python_for_writers() -> str:
    """A `python` whose `-P -m pipeline.…` of WRITERS the server becomes; else the real one.

    A run writes each file in a child process: a real one, which ends with its parent, but what it
    does is the server's, which has the imports behind it. So does a benchmark each peer's file.
    """
    shim, client = (shared.folder() / name for name in ("python", "writer.py"))
    with shared.alone("python"):
        if not shim.exists():
            be = "tests.making.cli:module"
            client.write_text(server.CLIENT.format(address=server.address(), be=be))
            soon = shim.with_name("python.soon")
            soon.write_text(
                f'#!/bin/sh\ncase "$1 $2 $3" in {WRITERS}) '
                f'shift 2; exec "{sys.executable}" -S -E "{client}" "$@";; esac\n'
                f'exec "{sys.executable}" "$@"\n'
            )
            soon.chmod(0o755)
            soon.rename(shim)
    return str(shim)


def module(arguments: list[str]) -> int:
    """Be `python -m`, with a module and its arguments."""
    # It may be imported already, which is fine here.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
    sys.argv = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def narrow_run(
    recipes: Sequence[Path], out: Path, *overrides: str, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """`pocketnest run` on the narrow network."""
    extra = ["--fresh"] if fresh else []
    return pocketnest("run", *recipes, "--out", out, *extra, *settings(*NARROW, *overrides))
