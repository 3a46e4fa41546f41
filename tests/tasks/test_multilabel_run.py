"""Several labels an image through the command line: one run of every format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, f1_score

from pipeline.commands.compare.change import Allowances
from pipeline.commands.compare.changes import changes_between
from pipeline.measure.baseline.files import read
from pipeline.report.markdown import render
from pipeline.report.records import Report
from pipeline.stages.finished_run import open_run
from pipeline.tasks.predictions import PREDICTIONS
from pipeline.tasks.tasks import task_of
from tests.making import HOUR, shapes
from tests.making.bundles import code_of, reference, unpacked
from tests.making.cli import pocketnest
from tests.making.recipes import ROOT

pytestmark = pytest.mark.slow

FORMS = ("onnx", "tflite", "coreml")
THRESHOLD = 0.4
RECIPE = f"""\
model: {{name: "python:{ROOT}/tests/making/plain_net.py:plain", input_size: {shapes.SIDE}}}
task: {{kind: multilabel, threshold: {THRESHOLD}}}
data: {{kind: image_folder, path: photos, calibration_images: 32}}
train: {{epochs: 8, batch_size: 16, learning_rate: 0.1, mixup: 0.1}}
prune: {{params: 0.8, round_to: 4, finetune: {{epochs: 1, batch_size: 16, learning_rate: 0.02}}}}
qat:
  train: {{epochs: 1, batch_size: 16, learning_rate: 0.02}}
  distill: {{weight: 0.5}}
target: {{device: a phone, format: FORMAT, precision: int8}}
budgets: {{accuracy_drop_pt: 20}}
measure: {{rounds: 3, warmup: 1}}
"""
IMAGES = 48
Labels = NDArray[np.int64]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs, beside the pictures: the tables have one layout each."""
    folder = tmp_path_factory.mktemp("labels")
    photos = folder / "photos"
    shapes.with_columns(photos / "train", shapes.drawn(photos / "train", 160, seed=0))
    shapes.with_lists(photos / "test", shapes.drawn(photos / "test", IMAGES, seed=1))
    recipes = [folder / f"{form}.yaml" for form in FORMS]
    for recipe in recipes:
        recipe.write_text(RECIPE.replace("FORMAT", recipe.stem))
    done = pocketnest("run", *recipes, "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def bundles(out: Path) -> dict[str, Path]:
    """The unpacked bundle of every format."""
    found = {}
    for form in FORMS:
        done = pocketnest("bundle", out / form)
        assert done.returncode == 0, done.stderr
        found[form] = unpacked(out / form / f"{form}.zip", out.parent / "bundles")
    return found


@pytest.fixture(scope="module")
def labels() -> Labels:
    """What the test images have, as they were drawn."""
    return np.random.default_rng(1).integers(0, 2, (IMAGES, len(shapes.LABELS)))


def decisions(out: Path, form: str) -> Labels:
    """The decisions that a report's figures are of."""
    return load_file(out / form / PREDICTIONS)["test/file"]


def images(out: Path) -> list[Path]:
    return sorted((out.parent / "photos" / "test").glob("*.png"))


@pytest.mark.parametrize("form", FORMS)
def test_every_gate_is_passed_and_figures_are_those_of_an_independent_count(
    out: Path, form: str, labels: Labels
) -> None:
    run = open_run(out / form, None)
    (target,) = run.report().targets
    assert target.parity.passed
    assert not target.parity.misses
    assert target.scales_exact is not None
    assert target.scales_exact.same == target.scales_exact.total > 0
    assert target.int8_coverage == 1.0
    assert target.accuracy is not None
    found = target.accuracy["test"].model_dump()
    logits = run.logits(run.dataset().tests["test"].pixels(torch.arange(IMAGES))).numpy()
    each = average_precision_score(labels, logits, average=None)
    assert found["ap"] == pytest.approx(list(each), abs=1e-12)
    assert found["mean_ap"] == pytest.approx(each.mean(), abs=1e-12)
    assert 0.6 < found["mean_ap"] < 1.0, "learned, and not all there is to tell"
    named = 1 / (1 + np.exp(-logits.astype(np.float64))) > THRESHOLD
    assert found["micro_f1"] == pytest.approx(f1_score(labels, named, average="micro"))
    assert np.array_equal(decisions(out, form), named)
    assert np.array_equal(load_file(out / form / PREDICTIONS)["test/labels"], labels)
    assert (out / form / "labels.txt").read_text().splitlines() == list(shapes.LABELS)


@pytest.mark.parametrize("form", FORMS)
def test_predict_and_the_bundles_code_name_the_reports_labels(
    out: Path, bundles: dict[str, Path], form: str
) -> None:
    predicted = _predicted(out, form)
    said = _classified(bundles[form], images(out), form)
    for row, found in enumerate(decisions(out, form)):
        wanted = {name for name, one in zip(shapes.LABELS, found, strict=True) if one}
        assert {name for name, (named, _) in predicted[row].items() if named} == wanted
        assert set(said[row]) == wanted
        for name, share in said[row].items():
            assert share == pytest.approx(predicted[row][name][1], abs=6e-4)


def _predicted(out: Path, form: str) -> list[dict[str, tuple[bool, float]]]:
    """Whether the file names each label that `predict` shows, and its probability, by image."""
    done = pocketnest("predict", out / form, out.parent / "photos" / "test")
    assert done.returncode == 0, done.stderr
    blocks = re.split(r"(?m)^.*\.png$", done.stdout)[1:]
    pattern = rf"(?m)^({'|'.join(shapes.LABELS)}) .* (\(?)(\d\.\d+)\)?$"
    return [
        {name: (not bracket, float(share)) for name, bracket, share in re.findall(pattern, block)}
        for block in blocks
    ]


def _classified(bundle: Path, photos: list[Path], form: str) -> list[dict[str, float]]:
    """The probability of each label that the bundle's code names, by image."""
    if form == "coreml":  # which runs on Apple systems only
        code, run = code_of(bundle), reference(bundle)
        found = []
        for photo in photos:
            logits = run(code.tensor_of(code.rgb_of(photo))).astype(np.float32)
            shares = code.probabilities(logits)
            found.append({shapes.LABELS[n]: float(shares[n]) for n in code.named(logits)})
        return found
    command = [sys.executable, "-P", bundle / "python" / "classify.py"]
    checked = subprocess.run([*command, "--golden"], capture_output=True, text=True, timeout=HOUR)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = subprocess.run([*command, *photos], capture_output=True, text=True, timeout=HOUR)
    assert done.returncode == 0, done.stderr
    blocks = re.split(r"(?m)^.*\.png$", done.stdout)[1:]
    return [
        {name: float(share) / 100 for name, share in re.findall(r"(?m)^  (.*): (.*)%$", block)}
        for block in blocks
    ]


def test_the_contract_and_the_card_say_the_rule(out: Path, bundles: dict[str, Path]) -> None:
    for form, bundle in bundles.items():
        output = json.loads((bundle / "contract.json").read_text())["output"]
        assert output["threshold"] == THRESHOLD
        assert 1 / (1 + np.exp(-output["above"])) == pytest.approx(THRESHOLD)
        assert "sigmoid makes the probability of each" in output["meaning"]
        (target,) = open_run(out / form, None).report().targets
        assert target.accuracy is not None
        card = (bundle / "model_card.md").read_text()
        assert "every one of its 3 labels whose probability is above 0.4" in card
        (figure, f1), *_ = (found.columns.items() for found in target.accuracy.values())
        for name, share in (figure, f1):
            (line,) = re.findall(rf"(?m)^\| test \| {IMAGES} \| {name} \|.*\| (.*) \|$", card)
            assert line == f"{share:.2%}".replace("%", " %")
        assert "### By label, average precision: test" in card
        table = (bundle / "golden" / "expected.csv").read_text().splitlines()
        assert table[0] == "image,label,named,logit_0,logit_1,logit_2"
        for row in table[1:]:
            _, _, named, *logits = row.split(",")
            above = [str(n) for n, one in enumerate(logits) if float(one) > output["above"]]
            assert named.split() == above


def test_the_report_has_a_table_of_labels(out: Path) -> None:
    page = (out / "combined" / "report.html").read_text()
    text = (out / "combined" / "report.md").read_text()
    report = open_run(out / "onnx", None).report()
    assert "<h3>By label</h3>" in page
    assert "<h3>By class</h3>" not in page
    assert "an image may have several labels" in page, "why no class is taken for another"
    assert "fewer labels right" in page
    assert "mAP drop" in page
    assert "top-1" not in page.lower()
    assert "top-1" not in text.lower()
    for name in shapes.LABELS:
        assert name in page
        assert re.search(rf"(?m)^\| {name} \| \d+ \| [\d.]+ % \|", text)
    (target,) = report.targets
    assert target.changes is not None
    assert target.changes["test"].images == IMAGES


def test_runs_are_compared_by_ranks_and_by_decisions(out: Path) -> None:
    run = open_run(out / "onnx", None)
    notes = {one.what: one.note for one in changes_between([run], [run], Allowances())}
    assert notes["mAP on test"] == "+0.00 pt; not tested: it is no count of images"
    assert notes["micro F1 on test"] == "+0.00 pt; 0 lost, 0 gained, p = 1"


def test_a_baseline_of_another_machine_can_be_taken(out: Path) -> None:
    """As a report takes a GPU's, which there need not be here."""
    done = pocketnest("baseline", out.parent / "onnx.yaml", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (out / "baselines").iterdir()
    kept, run = read(path), open_run(out / "onnx", None)
    task, dataset = task_of(run.recipe), run.dataset()
    report = run.report()
    accuracy = kept.found.accuracy["fp32"]["test"]
    assert accuracy.figure == pytest.approx(report.baseline.accuracy["test"].figure, abs=0.01)
    targets = dataset.tests["test"].labels
    assert task.confirms(kept.found.named["test"], targets, accuracy)
    found = kept.baseline(dataset, task)
    assert found.confusion_missing == report.baseline.confusion_missing
    found = found.model_copy(update={"accuracy": report.baseline.accuracy})
    whole = Report(**dict(report) | {"baseline": found})
    assert "measured elsewhere" in render(whole)


def test_another_threshold_trains_nothing(out: Path) -> None:
    recipe = out.parent / "onnx.yaml"
    changed = ("--set", "task.threshold=0.3", "--explain")
    done = pocketnest("run", recipe, "--out", out, *changed)
    assert done.returncode == 0, done.stderr
    does = dict(re.findall(r"(?m)^  (\w+) +(reused|made)\b", done.stdout))
    assert {stage for stage, what in does.items() if what == "reused"} == {"train", "prune", "qat"}
