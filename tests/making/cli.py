"""The real command line, run as a user runs it, on a network narrow enough for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "resnest50"
DEVICE_RECIPES = {
    "tflite": RECIPES / "android-litert-int8.yaml",
    "onnx": RECIPES / "linux-arm-onnxruntime-int8.yaml",
    "coreml": RECIPES / "iphone-coreml-w8a8.yaml",
}
NARROW = (
    "model.name=resnest14",
    "model.width_multiplier=0.25",
    "train.epochs=6",
    # ONNX Runtime 1.23 miscalculates convolutions of some widths, such as 22, with AMX.
    "prune.round_to=8",
    "prune.finetune.epochs=2",
    "qat.train.epochs=2",
    "measure.rounds=5",
    "measure.warmup=1",
    "budgets.speedup=null",
)


def settings(*overrides: str) -> list[str]:
    """`--set` for every override."""
    return [part for override in overrides for part in ("--set", override)]


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
