"""The class of every pixel through the command line: one run of every format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torchmetrics.functional.classification import multiclass_jaccard_index

from pipeline.commands.compare.change import Allowances
from pipeline.commands.compare.changes import changes_between
from pipeline.measure.baseline.files import read
from pipeline.report.pictures import read_pictures
from pipeline.stages.finished_run import open_run
from pipeline.tasks.class_maps import class_maps
from pipeline.tasks.images.preparation import VOID
from pipeline.tasks.predictions import PREDICTIONS
from pipeline.tasks.tasks import task_of
from tests.making import HOUR, masks
from tests.making.bundles import unpacked
from tests.making.cli import pocketnest
from tests.making.recipes import ROOT

pytestmark = pytest.mark.slow

FORMS = ("onnx", "tflite", "coreml")
CLASSES = ["ground", "red", "green"]
RECIPE = f"""\
model: {{name: "python:{ROOT}/tests/making/plain_segmenter.py:segmenter", input_size: [32, 48]}}
task: {{kind: segmentation, stride: 2, loss: {{class_weights: balanced, dice: 0.3}}}}
data: {{kind: mask_folder, path: data, void: {masks.VOID}, calibration_images: 8}}
train:
  epochs: 8
  batch_size: 8
  learning_rate: 0.1
  augment: {{shift: 0.1, flip: true, crop: [0.6, 1]}}
prune: {{params: 0.8, round_to: 4, finetune: {{epochs: 1, batch_size: 8, learning_rate: 0.02}}}}
qat:
  train: {{epochs: 1, batch_size: 8, learning_rate: 0.02}}
  distill: {{weight: 0.5}}
target: {{device: a phone, format: FORMAT, precision: int8}}
measure: {{rounds: 3, warmup: 1}}
"""
IMAGES = 12


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs, beside the images."""
    folder = tmp_path_factory.mktemp("masks")
    masks.drawn(folder / "data", {"train": 72, "test": IMAGES}, (32, 48))
    recipes = [folder / f"{form}.yaml" for form in FORMS]
    for recipe in recipes:
        recipe.write_text(RECIPE.replace("FORMAT", recipe.stem))
    done = pocketnest("run", *recipes, "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out"


@pytest.mark.parametrize("form", FORMS)
def test_every_gate_is_passed_and_the_figure_is_that_of_torchmetrics(out: Path, form: str) -> None:
    run = open_run(out / form, None)
    (target,) = run.report().targets
    assert target.parity.passed
    assert target.scales_exact is not None
    assert target.scales_exact.same == target.scales_exact.total > 0
    assert target.int8_coverage == 1.0
    assert target.agreement is not None
    assert target.agreement >= 0.995
    assert target.accuracy is not None
    test = run.dataset().tests["test"]
    logits = run.logits(test.pixels(torch.arange(IMAGES)))
    assert logits.shape == (IMAGES, 3, 16, 24), "channels first, whatever the file has"
    named, wanted = class_maps(logits, 2).long(), test.labels.long()
    mean = multiclass_jaccard_index(named, wanted, 3, average="macro", ignore_index=VOID)
    assert target.accuracy["test"].figure == pytest.approx(float(mean), abs=1e-6)
    assert target.accuracy["test"].figure > 0.5, "learned"
    kept = load_file(out / form / PREDICTIONS)
    assert kept["test/file"].shape == (IMAGES, 6)
    hits = ((named == wanted) & (wanted != VOID)).flatten(1).sum(1)
    assert kept["test/file"][:, 3:].astype(int).sum(1).tolist() == hits.tolist()
    assert (out / form / "labels.txt").read_text().splitlines() == CLASSES


def test_the_report_shows_classes_and_pictures(out: Path) -> None:
    page = (out / "combined" / "report.html").read_text()
    text = (out / "combined" / "report.md").read_text()
    for word in ("mean IoU", "pixel accuracy", "more pixels right", "By class", "Some test images"):
        assert word in page
    assert "top-1" not in page.lower() + text.lower()
    for name in CLASSES:
        assert re.search(rf"(?m)^\| {name} \| \d+ \| [\d.]+ % \|", text)
    found = read_pictures(out / "onnx")
    assert [one.name for one in found.colours] == CLASSES
    titles = [panel.title for panel in found.images[0].panels]
    assert titles == ["image", "truth", "float", "int8", "difference"]
    # Of each of the three runs four images, five pictures of each.
    assert page.count("data:image/png;base64,") == 3 * 4 * 5
    assert page.count(found.images[0].panels[0].png) >= 1


def test_predict_says_shares_and_draws(out: Path, tmp_path: Path) -> None:
    image = out.parent / "data" / "test" / "images" / "000.png"
    done = pocketnest("predict", out / "combined", image, "--pictures", tmp_path / "drawn")
    assert done.returncode == 0, done.stderr
    assert "ground" in done.stdout
    assert "share of pixels" in done.stdout
    with Image.open(tmp_path / "drawn" / "000.png") as picture:
        # The photo, the float network and three files, and where each of these differs.
        assert picture.size == (8 * 48 + 7 * 4, 32)


def test_runs_are_compared_image_by_image(out: Path) -> None:
    run = open_run(out / "onnx", None)
    notes = {one.what: one.note for one in changes_between([run], [run], Allowances())}
    assert notes["mean IoU on test"] == "+0.00 pt; not tested: it is no count of images"
    assert notes["pixel accuracy on test"] == "+0.00 pt; 0 lost, 0 gained, p = 1"


@pytest.mark.parametrize("form", FORMS)
def test_a_bundle_says_what_maps_are_and_its_code_names_the_same_classes(
    out: Path, form: str, tmp_path: Path
) -> None:
    done = pocketnest("bundle", out / form)
    assert done.returncode == 0, done.stderr
    bundle = unpacked(out / form / f"{form}.zip", tmp_path)
    output = json.loads((bundle / "contract.json").read_text())["output"]
    layout = "NHWC" if form == "tflite" else "NCHW"
    assert output["maps"] == {"layout": layout, "height": 16, "width": 24, "stride": 2}
    assert "scale every map by 2 first, bilinear" in output["meaning"]
    assert "for every pixel" in (bundle / "model_card.md").read_text()
    run = open_run(out / form, None)
    pixels = np.frombuffer((bundle / "golden" / "00.rgb").read_bytes(), np.uint8)
    given = torch.tensor(pixels.reshape(1, 32, 48, 3)).permute(0, 3, 1, 2).contiguous()
    logits = run.logits(given)
    kept = np.frombuffer((bundle / "golden" / "00.f32").read_bytes(), "<f4")
    assert np.array_equal(logits.numpy().ravel(), kept)
    if form == "coreml":  # which runs on Apple systems only
        return
    command = [sys.executable, "-P", bundle / "python" / "segment.py"]
    checked = subprocess.run([*command, "--golden"], capture_output=True, text=True, timeout=HOUR)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    photo = tmp_path / "photo.png"
    photo.write_bytes((bundle / "golden" / "00.png").read_bytes())
    subprocess.run([*command, photo], check=True, capture_output=True, timeout=HOUR)
    with Image.open(tmp_path / "photo.classes.png") as drawn:
        assert drawn.mode == "P"
        same = np.asarray(drawn) == class_maps(logits, 2)[0].numpy()
    assert same.mean() >= 0.999


def test_a_baseline_of_another_machine_can_be_taken(out: Path) -> None:
    done = pocketnest("baseline", out.parent / "onnx.yaml", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (out / "baselines").iterdir()
    kept, run = read(path), open_run(out / "onnx", None)
    task, dataset = task_of(run.recipe), run.dataset()
    accuracy = kept.found.accuracy["fp32"]["test"]
    assert accuracy.figure == pytest.approx(run.report().baseline.accuracy["test"].figure, abs=0.01)
    assert task.confirms(kept.found.named["test"], dataset.tests["test"].labels, accuracy)


def test_a_wrong_stride_gets_a_line(out: Path, tmp_path: Path) -> None:
    done = pocketnest("run", out.parent / "onnx.yaml", "--out", tmp_path, "--set", "task.stride=4")
    assert done.returncode == 2
    assert "task.stride: got 4; the network gives 3 x 16 x 24" in done.stderr
