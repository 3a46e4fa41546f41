"""Finished runs: the narrow network's, really made, and folders as runs leave them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.checksums import seal
from pipeline.base.store import STAGES_FILE
from pipeline.recipe.recipe import Recipe, resolved_yaml
from tests.making.cli import narrow_device_runs
from tests.making.shared import made_once

if TYPE_CHECKING:
    from pipeline.stages.context import Context


def narrow_runs(place: Path) -> Path:
    """A copy of the output of one run of the three device recipes, on the narrow network.

    It is made once a session, in a process of its own. Beside the copy at `place` lie
    `stdout.txt` and `stderr.txt`, what it said.
    """

    def make(folder: Path) -> None:
        done = narrow_device_runs(folder / "artifacts")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "stdout.txt").write_text(done.stdout)
        (folder / "stderr.txt").write_text(done.stderr)

    made = made_once("narrow", make)
    shutil.copytree(made / "artifacts", place, symlinks=True)
    for said in ("stdout.txt", "stderr.txt"):
        shutil.copy(made / said, place.parent)
    return place


def left_behind(
    folder: Path,
    recipe: Recipe,
    *,
    content: str = "",
    classes: Sequence[str] = ("zero", "one"),
    stages: Mapping[str, str] | None = None,
) -> Path:
    """A sealed folder as a run of `recipe` leaves it, with `content` in place of a model.

    What lies there already, such as a report, is sealed with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"model.{recipe.target.format}").write_text(content)
    (folder / "recipe.yaml").write_text(resolved_yaml(recipe))
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in classes))
    (folder / STAGES_FILE).write_text(json.dumps(dict(stages or {})))
    seal(folder)
    return folder


def context(recipe: Recipe) -> Context:
    """What a stage is told of a run, with images in memory and nothing shown."""
    from pipeline.stages.context import Context
    from tests.making.networks import dataset

    return Context(
        recipe=recipe,
        dataset=dataset(),
        tracked=lambda title, total: nullcontext(lambda done, text: None),
    )
