"""Yes or no by one logit: the same figures as two logits, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.base.errors import InputError
from pipeline.recipe.training import TrainConfig
from pipeline.tasks import binary
from tests.making.bundles import golden, unpacked
from tests.making.cli import pocketnest

NET = """\
from torch import nn


def net(num_classes):
    assert num_classes == 1
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
"""
RECIPE = """\
model: {name: "python:net.py:net", input_size: 16}
task: {kind: binary}
data: {kind: image_folder, path: photos, calibration_images: 16}
train: {epochs: 12, batch_size: 16, learning_rate: 0.1, mixup: 0.1}
prune: {params: 0.8, round_to: 4, finetune: {epochs: 2, batch_size: 16, learning_rate: 0.02}}
qat:
  train: {epochs: 2, batch_size: 16, learning_rate: 0.02}
  distill: {weight: 0.5}
target: {device: a phone, format: FORMAT, precision: int8}
measure: {rounds: 5}
"""

Z = torch.tensor([[2.0], [-1.0], [0.0], [-0.0], [0.25]])
LABELS = torch.tensor([1, 0, 1, 0, 0])


def test_the_loss_is_binary_cross_entropy() -> None:
    expected = F.binary_cross_entropy_with_logits(Z[:, 0], LABELS.float())
    assert torch.allclose(binary.loss()(Z, LABELS), expected)
    config = TrainConfig(epochs=1, batch_size=2, learning_rate=0.1, label_smoothing=0.1)
    smoothed = F.binary_cross_entropy_with_logits(Z[:, 0], 0.9 * LABELS + 0.05)
    assert torch.allclose(binary.loss(config)(Z, LABELS), smoothed)


def test_an_answer_above_0_is_a_yes() -> None:
    assert binary.right(Z, LABELS) == 3
    answers = {"test": Z}
    agreement = binary.compare({"test": -Z}, answers, 0.25)
    assert (agreement.units, agreement.share) == (5, 0.4)
    assert sorted(agreement.leads) == [1.0, 4.0, 8.0], "steps from 0"
    found = binary.prediction("x", {"float": Z[0]}, ("no", "yes"), 2)
    assert found.classes == ("yes", "no")
    assert found.scores["float"][0] == pytest.approx(float(Z[0].sigmoid()))
    heads, rows = binary.golden_table(Z, LABELS.tolist())
    assert heads == ["label", "named", "logit_0"]
    assert rows[0] == ["1", "1", "2"]
    assert rows[2][:2] == ["1", "0"], "0 is a no"


def test_there_are_two_classes() -> None:
    assert binary.outputs(("cat", "dog")) == ("dog",)
    with pytest.raises(InputError, match="got binary; it takes 2 classes, and the data has 3"):
        binary.outputs(("ant", "bee", "cat"))


def photos(folder: Path) -> None:
    """Reddish and bluish noise."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for name, channel in (("blue", 2), ("red", 0)):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                noise = draw.integers(0, 160, (20, 24, 3), np.uint8)
                noise[..., channel] += 60
                Image.fromarray(noise).save(folder / part / name / f"{number}.png")


@pytest.mark.slow
def test_a_run_answers_yes_or_no_in_every_format(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    (tmp_path / "net.py").write_text(NET)
    recipes = []
    for form in ("onnx", "tflite", "coreml"):
        recipes.append(tmp_path / f"{form}.yaml")
        recipes[-1].write_text(RECIPE.replace("FORMAT", form))
    out = tmp_path / "out"
    done = pocketnest("run", *recipes, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    for form in ("onnx", "tflite", "coreml"):
        report = json.loads((out / form / "report.json").read_text())
        (target,) = report["targets"]
        assert report["baseline"]["accuracy"]["test"]["top1"] == 1.0
        assert target["accuracy"]["test"]["top1"] == 1.0
        assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 0
        assert (out / form / "labels.txt").read_text() == "blue\nred\n"
    done = pocketnest("predict", out / "onnx", tmp_path / "photos" / "test" / "red" / "0.png")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("red", "blue"))]
    assert [line[0] for line in lines] == ["red", "blue"]
    assert float(lines[0][1]) > 0.5
    assert float(lines[0][1]) + float(lines[1][1]) == pytest.approx(1, abs=2e-4)
    for form in ("onnx", "tflite"):
        done = pocketnest("bundle", out / form)
        assert done.returncode == 0, done.stderr
        bundle = unpacked(out / form / f"{form}.zip", tmp_path / "bundles")
        checked = golden(bundle)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        output = json.loads((bundle / "contract.json").read_text())["output"]
        assert (output["classes"], output["shape"][-1]) == (2, 1)
        assert "sigmoid" in output["meaning"]
