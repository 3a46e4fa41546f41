"""What is kept of full runs, and whether what was kept is what it says."""

from __future__ import annotations

import csv
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.base.checksums import damage
from pipeline.base.errors import InputError
from pipeline.commands import reference
from pipeline.formats.formats import FORMATS
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.report.records import Report
from pipeline.report.write import write_report
from pipeline.stages.finished_run import Finished, open_runs
from pipeline.tasks.images.load import decoded
from tests.making import ROOT, reports

KEPT = sorted(path for path in (ROOT / "artifacts" / "reference").glob("*") if path.is_dir())
BLOCKS = sorted(path.parent for folder in KEPT for path in folder.glob("*/report.json"))
SHARED = ROOT.parent / "shared" / "data" / "cifar10-jpg.tar.xz"
EVERY = 20
"""Of the test images, those whose number is a multiple of this are run again."""


def named(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


# Writing


def run(folder: Path, block: str, form: str, number: int, **changes: Any) -> Finished:
    """A run's directory as `pocketnest run` leaves it, but for its stages."""
    network = {"bottleneck": "resnest50", "basic": "resnest50_basic"}[block]
    whole = reports.full(6)
    name = f"{block}-{form}-{number}"
    target = {t.format: t for t in whole.targets}[form].model_copy(update={"name": name} | changes)
    model = whole.model.model_copy(update={"name": network, "block": block})
    report = Report(**dict(whole) | {"model": model, "targets": (target,), "passed": target.passed})
    directory = folder / name
    write_report(report, directory)
    for extra in ("recipe.yaml", "labels.txt", "predictions.safetensors", "weights.safetensors"):
        (directory / extra).write_text(f"{extra} of {name}")
    file = directory / f"model{FORMATS[form].suffix}"
    file.write_text(f"the file of {name}")
    (recipe,) = load_recipes(
        [ROOT / "recipes/resnest50/android-litert-int8.yaml"], [f"name={name}"]
    )
    return Finished(directory=directory, recipe=recipe, file=file, classes=report.data.classes)


@pytest.fixture
def runs(tmp_path: Path) -> list[Finished]:
    return [
        run(tmp_path, "bottleneck", "tflite", 1, size_bytes=7_000_000, budgets=(), passed=True),
        run(tmp_path, "bottleneck", "onnx", 2, size_bytes=6_000_000, budgets=(), passed=True),
        run(tmp_path, "basic", "tflite", 3, size_bytes=8_000_001, budgets=(), passed=True),
        run(
            *(tmp_path, "basic", "coreml", 4),
            size_bytes=1_000_000,
            budgets=(),
            passed=True,
            evaluated="reference",
        ),
    ]


def test_reports_recipes_curves_and_the_smallest_file_are_kept(
    runs: list[Finished], tmp_path: Path
) -> None:
    place = tmp_path / "reference" / "some"
    (place / "old").mkdir(parents=True)
    reference.keep(runs, place)
    assert damage(place) is None
    assert {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()} == {
        *("README.md", "SHA256SUMS"),
        *(f"{block}/report.{kind}" for block in SUMMED for kind in ("json", "md", "html")),
        *(f"{block}/curves.csv" for block in SUMMED),
        *(f"{r.report().model.block}/{r.recipe.name}/recipe.yaml" for r in runs),
        *(f"bottleneck/bottleneck-onnx-2/{name}" for name in FILE),
    }
    kept = (place / "bottleneck/bottleneck-onnx-2/model.onnx").read_bytes()
    assert kept == runs[1].file.read_bytes()
    assert list(place.parent.iterdir()) == [place]


SUMMED = ("bottleneck", "basic")
FILE = ("model.onnx", "labels.txt", "predictions.safetensors")


def test_the_tables_say_what_the_reports_say(runs: list[Finished], tmp_path: Path) -> None:
    reference.keep(runs, tmp_path / "kept")
    text = (tmp_path / "kept" / "README.md").read_text()
    report = Report.model_validate_json((tmp_path / "kept/bottleneck/report.json").read_text())
    (line,) = (line for line in text.splitlines() if line.startswith("| `bottleneck-tflite-1` |"))
    whole, target = report.baseline.size_bytes / 1e6, report.targets[0]
    assert f"{whole:.1f} → 7.0 MB, {whole / 7:.2f}x" in line
    assert f"{target.speedup:.2f}x" in line
    assert f"{target.accuracy_drop_pt:.2f}" in line
    (timed,) = (line for line in text.splitlines() if line.startswith("| basic | int8 | coreml |"))
    assert timed.count("not measured") == 2
    assert "| reference evaluator | not timed |" in timed
    assert "87.65 %" in text
    assert "89.23 %" in text


def test_curves_are_those_of_the_stages(runs: list[Finished]) -> None:
    report = runs[0].report()
    table = list(csv.DictReader(reference.curves(report).splitlines()))
    trained = [stage for stage in report.targets[0].stages if stage.curve]
    assert trained
    assert len(table) == sum(len(stage.curve) for stage in trained)
    assert float(table[-1]["accuracy"]) == trained[-1].curve[-1].accuracy
    assert {line["targets"] for line in table} == {"bottleneck-tflite-1"}


def test_runs_of_two_networks_of_a_kind_are_refused(tmp_path: Path, runs: list[Finished]) -> None:
    other = run(tmp_path, "bottleneck", "onnx", 5)
    report = other.report()
    model = report.model.model_copy(update={"params": 7})
    write_report(Report(**dict(report) | {"model": model}), other.directory)
    with pytest.raises(InputError, match=r"model\.params is .* give runs of one float network"):
        reference.keep([*runs, other], tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_more_than_may_be_kept_is_refused(
    runs: list[Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"MB are to be kept, at most 0\.001 may be"):
        reference.keep(runs, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


# What is kept here


def kept_report(block: Path) -> Report:
    return Report.model_validate_json((block / "report.json").read_text())


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
def test_what_is_kept_is_whole_small_and_true(folder: Path) -> None:
    assert damage(folder) is None
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= reference.MOST_FILE_BYTES
    assert sum(sizes.values()) <= reference.MOST_BYTES
    suffixes = {path.suffix for path in sizes if path.name != "predictions.safetensors"}
    assert not suffixes & {".pth", ".pt", ".safetensors", ".ckpt"}, "no float weights"
    found = [kept_report(block) for block in BLOCKS if block.parent == folder]
    found.sort(key=lambda report: report.model.block, reverse=True)
    assert (folder / "README.md").read_text() == reference.readme(folder.name, found)


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_every_target_has_its_recipe_and_curves(block: Path) -> None:
    report = kept_report(block)
    assert report.model.block == block.name
    assert (block / "curves.csv").read_text() == reference.curves(report)
    for target in report.targets:
        (recipe,) = load_recipes([block / target.name / "recipe.yaml"])
        assert recipe.name == target.name
        assert (recipe.target.format, recipe.target.precision) == (target.format, target.precision)
    assert {target.format for target in report.targets} == {"onnx", "tflite", "coreml"}


WITH_FILE = [block for block in BLOCKS if reference.smallest_of(kept_report(block)) is not None]


@pytest.mark.slow
@pytest.mark.parametrize("block", WITH_FILE, ids=named)
def test_the_kept_file_answers_as_it_did(block: Path, tmp_path: Path) -> None:
    target = reference.smallest_of(kept_report(block))
    assert target is not None
    directory = block / target.name
    answers = load_file(directory / "predictions.safetensors")
    (kept,) = open_runs(directory, checked=False)
    if not SHARED.is_file():
        noise = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
        logits = kept.logits(torch.from_numpy(noise))
        assert logits.shape == (4, 10)
        assert bool(logits.isfinite().all())
        return
    with tarfile.open(SHARED) as archive:
        members = (m for m in archive if m.isfile() and Path(m.name).parts[-3:-2] == ("test",))
        archive.extractall(tmp_path, members, filter="data")
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == len(answers["test/labels"])
    rows = range(0, len(files), EVERY)
    pixels = [decoded(kept.recipe.data, files[r].read_bytes(), files[r], square(32)) for r in rows]
    named_now = kept.logits(torch.stack(pixels)).argmax(1)
    same = (named_now == answers["test/file"][::EVERY]).double().mean()
    assert same >= 0.995
    labels = [kept.classes.index(files[r].parent.name) for r in rows]
    assert labels == answers["test/labels"][::EVERY].tolist()
    shutil.rmtree(tmp_path)
