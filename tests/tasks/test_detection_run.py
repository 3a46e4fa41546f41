"""Detection through the command line: one run of every format, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from pipeline.stages.finished_run import open_run
from pipeline.tasks.box_accuracy import BoxAccuracy
from pipeline.tasks.images.boxes import counted
from pipeline.tasks.predictions import PREDICTIONS
from pipeline.tasks.tasks import task_of
from tests.making.cli import pocketnest
from tests.making.recipes import ROOT

pytestmark = pytest.mark.slow

FORMS = ("onnx", "tflite", "coreml")
IMAGES = 6
RECIPE = f"""\
model: {{name: "python:{ROOT}/tests/making/plain_detector.py:detector", input_size: [64, 96]}}
task: {{kind: detection, threshold: 0.15}}
data: {{kind: digit_scenes, train_images: 48, test_images: {IMAGES}, calibration_images: 8}}
train: {{epochs: 6, batch_size: 8, learning_rate: 0.02, augment: {{shift: 0.1}}}}
qat:
  train: {{epochs: 1, batch_size: 8, learning_rate: 0.002}}
  distill: {{weight: 0.5}}
target: {{device: a phone, format: FORMAT, precision: int8}}
guard: {{accuracy_drop_pt: null}}
measure: {{rounds: 3, warmup: 1}}
threads: 1
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("boxes")
    recipes = [folder / f"{form}.yaml" for form in FORMS]
    for recipe in recipes:
        recipe.write_text(RECIPE.replace("FORMAT", recipe.stem))
    done = pocketnest("run", *recipes, "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


@pytest.mark.parametrize("form", FORMS)
def test_every_gate_is_passed_and_figures_are_those_of_the_file(out: Path, form: str) -> None:
    run = open_run(out / form, None)
    (target,) = run.report().targets
    assert target.parity.passed, target.parity.misses
    assert target.scales_exact is not None
    assert target.scales_exact.same == target.scales_exact.total > 0
    assert target.int8_coverage == 1.0
    assert target.accuracy is not None
    dataset = run.dataset()
    images = dataset.tests["test"]
    answers = run.logits(images.pixels(torch.arange(IMAGES)))
    assert answers.shape == (IMAGES, 15, 4, 6)
    found = target.accuracy["test"]
    assert isinstance(found, BoxAccuracy)
    assert found == task_of(run.recipe).accuracies({"test": answers}, dataset)["test"]
    assert found.images == IMAGES
    kept = load_file(out / form / PREDICTIONS)
    assert np.array_equal(kept["test/labels"], counted(images.labels).numpy())
    assert kept["test/file"].sum() == round(found.recall * sum(found.objects))


def test_the_report_has_the_words_of_boxes(out: Path) -> None:
    for text in ((out / "combined" / name).read_text() for name in ("report.md", "report.html")):
        for word in ("AP50", "recall", "objects"):
            assert word in text
        assert text.count("data:image/png;base64") in (0, 3 * 3 * len(FORMS))
    assert (out / "combined" / "report.html").read_text().count("<figcaption>truth") == 9
    report = json.loads((out / "combined" / "report.json").read_text())
    assert report["baseline"]["accuracy"]["test"].keys() == BoxAccuracy.model_fields.keys()


def test_predict_draws_the_boxes_of_every_file(out: Path, tmp_path: Path) -> None:
    run = open_run(out / "onnx", None)
    pixels = run.dataset().tests["test"].pixels(torch.tensor([0]))[0]
    photo = tmp_path / "scene.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(photo)
    done = pocketnest("predict", out / "combined", photo, "--pictures", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "drawn" / "scene.png") as drawn:
        assert drawn.size == (4 * 96 * 3 + 3 * 4, 64 * 3)  # the float network and three files


def test_a_run_is_compared_with_another(out: Path) -> None:
    done = pocketnest("compare", out / "onnx", out / "onnx")
    assert done.returncode == 0, done.stderr
    assert "No regression" in done.stdout


def test_a_bundle_is_refused(out: Path) -> None:
    done = pocketnest("bundle", out / "onnx")
    assert done.returncode == 2
    assert "a bundle has no code yet for task.kind detection" in done.stderr
