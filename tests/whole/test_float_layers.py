"""Layers that a recipe leaves in float, through the real command line."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats.file_facts import conv_macs
from tests.making.cli import pocketnest
from tests.making.recipes import DEVICE_RECIPES, PLAIN_MODEL, settings

pytestmark = pytest.mark.slow

SHORT = (
    "threads=1",
    "data.test_images=60",
    "data.calibration_images=60",
    "train.epochs=1",
    "prune=null",
    "qat.train.epochs=1",
    "guard.accuracy_drop_pt=null",
    "measure.rounds=3",
    "measure.warmup=1",
    "budgets=null",
)
CONV = conv_macs((16, 16, 3, 3), 8 * 8)
WHOLE = conv_macs((16, 3, 3, 3), 16 * 16) + 4 * CONV + 160
"""Of the network of `PLAIN_MODEL` on images of 32 x 32."""
NORMED = """\
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 4, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.act, self.conv = nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(self.act(self.norm(self.stem(x))))).mean((2, 3)))


def net(num_classes):
    return Net(num_classes)
"""


def run(*recipes: Path, out: Path, overrides: tuple[str, ...]) -> Any:
    return pocketnest("run", *recipes, "--out", out, *settings(*SHORT, *overrides))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all formats, one convolution of six layers in float."""
    folder = tmp_path_factory.mktemp("floats")
    asked = (PLAIN_MODEL, "qat.float=[blocks.0.conv1]")
    done = run(*DEVICE_RECIPES.values(), out=folder, overrides=asked)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("form", DEVICE_RECIPES)
def test_every_gate_passes_and_the_share_is_exactly_what_was_chosen(form: str, out: Path) -> None:
    report = json.loads((out / DEVICE_RECIPES[form].stem / "report.json").read_text())
    (target,) = report["targets"]
    assert target["parity"]["misses"] == []
    assert target["parity"]["layers_alike"] == target["parity"]["layers"] > 10
    assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 0
    assert target["int8_coverage"] == (WHOLE - CONV) / WHOLE
    assert target["left_in_float"] == [
        {"module": "blocks.0.conv1", "operations": ["conv2d"], "macs": CONV}
    ]
    assert report["model"]["macs"] == WHOLE
    if form == "tflite":
        assert (target["partitions"], target["outside"]) == (1, [])


def test_what_is_in_float_is_said(out: Path) -> None:
    said = "left in float by the recipe: blocks.0.conv1; 21.05 % of the MACs are outside int8"
    console = " ".join((out / "said.txt").read_text().split())
    assert "in float: blocks.0.conv1 (21.05% of the MACs)" in console, "once it is folded"
    for recipe in DEVICE_RECIPES.values():
        assert f"{recipe.stem}: {said}" in console
        assert said in (out / recipe.stem / "report.md").read_text()
        assert said in (out / recipe.stem / "report.html").read_text()


def test_commands_on_a_finished_run_know_it(out: Path, tmp_path: Path) -> None:
    folder = out / DEVICE_RECIPES["tflite"].stem
    bundled = pocketnest("bundle", folder, "--out", tmp_path)
    assert bundled.returncode == 0, bundled.stderr
    (packed,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(packed) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("model_card.md")]
        card = archive.read(name).decode()
    assert "left in float by the recipe: blocks.0.conv1; 21.05 % of the MACs" in card
    for arguments in (("debug", folder), ("debug", folder, "--sensitivity")):
        done = pocketnest(*arguments, "--images", "8")
        assert done.returncode == 0, done.stderr
        assert re.search(r"^blocks\.0\.conv1 conv2d_1 ", done.stdout, re.M)
    looked = pocketnest("inspect", folder)
    assert looked.returncode == 0, looked.stderr
    (row,) = re.findall(r"^blocks\.0\.conv1 .*$", looked.stdout, re.M)
    assert float(row.split()[-1].removesuffix("%")) > 0, "the float convolution's time is its own"


@pytest.mark.parametrize(("given", "normalizing"), [("normalized", 0), ("uint8_rgb", 3 * 32 * 32)])
def test_answers_of_a_float_classifier_are_judged_too(
    given: str, normalizing: int, out: Path
) -> None:
    """The first layer is float as well; camera pixels are normalised in int8 before it."""
    asked = (PLAIN_MODEL, "qat.float=[stem, fc]", f"target.input={given}")
    done = run(DEVICE_RECIPES["onnx"], out=out / given, overrides=asked)
    assert done.returncode == 0, done.stdout + done.stderr
    file = out / given / DEVICE_RECIPES["onnx"].stem / "report.json"
    (target,) = json.loads(file.read_text())["targets"]
    assert target["int8_coverage"] == (4 * CONV + normalizing) / (WHOLE + normalizing)
    assert target["parity"]["steps"]["p99"] <= 2
    assert target["parity"]["difference"] is None


Refused = Callable[..., tuple[str, str]]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """What a run says that ends before anything was trained."""

    def refused(*overrides: str) -> tuple[str, str]:
        done = run(DEVICE_RECIPES["onnx"], out=tmp_path / "out", overrides=overrides)
        assert done.returncode == 2, done.stdout + done.stderr
        assert not list(tmp_path.glob("out/.store/train-*")), "nothing was trained"
        return " ".join(done.stderr.split()), done.stdout

    return refused


def test_a_pattern_that_names_nothing_is_refused_with_names_that_are_near(refused: Refused) -> None:
    error, _ = refused(PLAIN_MODEL, "qat.float=[blocks.0.conv3]")
    assert "qat.float: got 'blocks.0.conv3', which is no module of the network" in error
    assert "near are blocks.0.conv2, blocks.0.conv1" in error


def test_widths_are_not_searched_for_by_times_of_float_layers(refused: Refused) -> None:
    finetune = "{epochs: 1, batch_size: 32, learning_rate: 0.02}"
    asked = f"prune={{latency: 0.9, finetune: {finetune}}}"
    error, _ = refused(PLAIN_MODEL, "qat.float=[fc]", asked)
    assert "prune.latency: widths are searched for by the times of int8 layers" in error


def test_a_group_norm_is_refused_in_int8_and_passes_in_float(
    refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(NORMED)
    model = f"model={{name: 'python:{tmp_path}/nets.py:net', input_size: 32}}"
    error, _ = refused(model)
    assert "group_norm in norm: no rule for this operation" in error
    assert "or leave it in float by `qat.float: [norm]`" in error
    asked = (model, "qat.float=[norm]")
    done = run(DEVICE_RECIPES["onnx"], out=tmp_path / "passes", overrides=asked)
    assert done.returncode == 0, done.stdout + done.stderr
    file = tmp_path / "passes" / DEVICE_RECIPES["onnx"].stem / "report.json"
    (target,) = json.loads(file.read_text())["targets"]
    assert target["parity"]["misses"] == []
    (left,) = target["left_in_float"]
    assert left["module"] == "norm"
    assert {"rsqrt", "mean", "conv2d"} <= set(left["operations"])
