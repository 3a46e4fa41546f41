"""What a store holds before and after it is cleared."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from pipeline.__main__ import main
from pipeline.commands.gc import removable


def names(out: Path) -> set[str]:
    return {one.path.name for one in removable(out, out / ".store")}


SIDE = 32


def images(out: Path) -> Path:
    return out / ".store" / "images"


def decoded(out: Path) -> set[Path]:
    """Where images lie decoded, and the indexes of their folders."""
    found = {path for path in images(out).iterdir() if not path.name.startswith(".")}
    return found | set((images(out) / ".index").iterdir())


def told(out: Path, *arguments: str) -> dict[str, tuple[str, str]]:
    """Whether `gc` lets each thing stay, and why, as the command says it."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        assert main(["gc", str(out), *arguments]) == 0
    lines = [line.split(maxsplit=4) for line in shown.getvalue().splitlines()[:-1]]
    return {name.removesuffix(":"): (does, why) for _, _, does, name, why in lines}
