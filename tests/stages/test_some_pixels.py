"""Which images of a run are taken where any will do: its own copies, or those of its data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.store import STAGES_FILE
from pipeline.recipe.recipe import Recipe
from pipeline.stages import carried, kept_images
from pipeline.stages.carried import some_pixels
from pipeline.stages.finished_run import Finished
from pipeline.stages.kept_images import CALIBRATION, GOLDEN, KEPT_IMAGES, TEST, KeptSet
from pipeline.tasks.images.pixels import Images
from tests.making.recipes import device_recipe


def kept(run: Finished, rows: list[int], base: int) -> KeptSet:
    """A set whose every image is of one level: its row and `base`."""
    return KeptSet(
        pixels=levels(run, [base + row for row in rows]),
        labels=torch.zeros(len(rows), dtype=torch.int64),
        rows=torch.tensor(rows),
        total=40,
    )


def levels(run: Finished, values: list[int]) -> Tensor:
    shape = run.shape.batch(len(values))
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(shape).contiguous()


def of(pixels: Tensor) -> list[int]:
    return pixels[:, 0, 0, 0].tolist()


@pytest.fixture
def run(tmp_path: Path) -> Finished:
    """A run that carries rows 1 and 3 in its bundle, 0, 1 and 2 for tests, and calibration."""
    recipe: Recipe = device_recipe()
    found = Finished(directory=tmp_path / "run", recipe=recipe, file=Path("model"), classes=())
    folders = {name: tmp_path / name for name in ("run", "judge_fold", "fold")}
    sets = {
        "run": {GOLDEN: kept(found, [1, 3], 0)},
        "judge_fold": {TEST: kept(found, [0, 1, 2], 0)},
        "fold": {CALIBRATION: kept(found, [0, 1], 100)},
    }
    for name, folder in folders.items():
        folder.mkdir()
        kept_images.write(folder / KEPT_IMAGES, sets[name])
    stages = {name: f"../{name}" for name in ("judge_fold", "fold")}
    (tmp_path / "run" / STAGES_FILE).write_text(json.dumps(stages))
    return found


def gone(run: Finished) -> Images:
    raise InputError("its data is gone")


def test_what_a_run_carries_is_taken_once(run: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "_tested", gone)
    assert of(some_pixels(run, 3)) == [1, 3, 0]
    assert of(some_pixels(run, 6)) == [1, 3, 0, 2, 100, 101]


def test_where_that_is_not_enough_images_are_taken_from_all_over_its_data(
    run: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = Images(
        labels=torch.zeros(20, dtype=torch.int64),
        shape=run.shape,
        source=levels(run, list(range(20))),
    )
    monkeypatch.setattr(carried, "_tested", lambda run: tested)
    assert of(some_pixels(run, 10)) == list(range(0, 20, 2))


def test_where_the_data_is_gone_too_what_is_carried_has_to_do(
    run: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "_tested", gone)
    assert of(some_pixels(run, 50)) == [1, 3, 0, 2, 100, 101]
    for folder in (run.directory, *run.stages().values()):
        (folder / KEPT_IMAGES).unlink()
    with pytest.raises(InputError, match="its data is gone"):
        some_pixels(run, 50)
