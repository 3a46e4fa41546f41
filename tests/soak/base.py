"""What the fuzzed files are made from: one finished run of a tiny network, in all formats."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.making import HOUR, ROOT
from tests.making.cli import command, environment
from tests.making.recipes import DEVICE_RECIPES

TINY = {
    "model": "{name: resnest14, width_multiplier: 0.125, layers: [1, 1, 1, 1], stem_width: 16}",
    "train": "{epochs: 1, batch_size: 128, warmup_epochs: 0}",
    "data": "{test_images: 16, calibration_images: 16}",
    "threads": "1",  # two that wait for each other take minutes on a busy machine
    "prune": "null",
    "qat": "{train: {epochs: 1, batch_size: 128}}",
    "measure": "{rounds: 1, warmup: 0}",
    "budgets": "null",
}
WEIGHTS = "weights.safetensors"
FORMATS = ("onnx", "tflite", "coreml")
_STOP = """
import os, signal, sys
from pipeline import __main__
from pipeline.compress.training import loop
refuse = loop._refuse_nan
def stop(found, step, training):
    refuse(found, step, training)
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
loop._refuse_nan = stop
sys.exit(__main__.main(sys.argv[1:]))
"""
"""A run that is ended during its training, and keeps the state it goes on from."""


def recipe(folder: Path, form: str) -> Path:
    """The recipe of a format, as `make` wrote it."""
    return folder / f"{form}.yaml"


def run_of(out: Path, form: str) -> Path:
    """The folder of a format's run."""
    return out / form


def make(folder: Path, *, quick: bool = False) -> None:
    """Make what is not there, or was made by other code.

    `folder/out` is a finished run of three formats, which the quick share goes without;
    `folder/stopped` one that was stopped during its training; beside them lie weights.
    """
    mark = folder / "made-by"
    if mark.is_file() and mark.read_text() == f"{_code()} {quick}":
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for form in FORMATS:
        lines = [f"extends: {DEVICE_RECIPES[form]}", *(f"{k}: {v}" for k, v in TINY.items())]
        recipe(folder, form).write_text("\n".join(lines) + "\n")
    recipes = [recipe(folder, form) for form in FORMATS]
    if not quick:
        _run(command("run", *recipes, "--out", folder / "out"), (0, 3))
        (folder / "out" / "run.log").unlink()
    stopped = [sys.executable, "-c", _STOP, "run", str(recipes[0]), "--out"]
    _run([*stopped, str(folder / "stopped")], (143,))
    _save_weights(recipes[0], folder / WEIGHTS)
    mark.write_text(f"{_code()} {quick}")


def _save_weights(recipe_file: Path, path: Path) -> None:
    from pipeline.networks.checkpoints import save_checkpoint
    from pipeline.networks.resnest.build import build
    from pipeline.recipe.recipe import load_recipes

    (loaded,) = load_recipes([recipe_file])
    save_checkpoint(build(loaded.model, 10), path)


def _run(arguments: list[str], codes: tuple[int, ...]) -> None:
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=HOUR
    )
    if done.returncode not in codes:
        raise RuntimeError(f"exit {done.returncode}: {arguments}\n{done.stdout}{done.stderr}")


@cache
def _code() -> str:
    """Hash of all that decides what is made."""
    files = [*sorted((ROOT / "pipeline").rglob("*.py")), Path(__file__)]
    files += sorted((ROOT / "recipes").rglob("*.yaml"))
    content = b"\0".join(file.read_bytes() for file in files)
    return hashlib.sha256(os.fsencode(ROOT) + content).hexdigest()
