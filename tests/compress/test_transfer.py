"""A checkpoint of other classes: its body is kept, its classifier is new, and both are trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.compress.training.loop import CURVE
from pipeline.networks.checkpoints import WEIGHTS, read_checkpoint, save_checkpoint
from pipeline.networks.resnest.network import named
from pipeline.stages import train as stage
from tests.making import networks
from tests.making.recipes import device_recipe
from tests.making.runs import context as making_context

NARROW = ("model.name=resnest14", "model.width_multiplier=0.25", "model.layers=[1,1,1,1]")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 1,000 classes."""
    path = tmp_path_factory.mktemp("given") / "given.safetensors"
    torch.manual_seed(7)
    model = named("resnest14", num_classes=1000, width_multiplier=0.25, layers=(1, 1, 1, 1))
    save_checkpoint(model, path, {"classes": json.dumps([f"class {n}" for n in range(1000)])})
    return path


def train(checkpoint: Path, out: Path, epochs: int) -> dict[str, torch.Tensor]:
    """The weights after so many epochs."""
    changes = [f"model.checkpoint={checkpoint}", "model.head=replace", f"train.epochs={epochs}"]
    quick = ("train.warmup_epochs=0", "train.batch_size=8", "train.precision=float32")
    recipe = device_recipe(*NARROW, *changes, *quick)
    out.mkdir()
    context = making_context(recipe)
    stage.train(context, {}, out)
    return read_checkpoint(out / WEIGHTS)


def test_the_body_is_the_checkpoints_and_the_head_is_new(checkpoint: Path, tmp_path: Path) -> None:
    given = read_checkpoint(checkpoint)
    found = train(checkpoint, tmp_path / "out", epochs=0)
    assert found["fc.weight"].shape[0] == len(networks.dataset().classes)
    for name in given.keys() - {"fc.weight", "fc.bias"}:
        assert torch.equal(found[name], given[name]), name


def test_all_of_it_is_trained(checkpoint: Path, tmp_path: Path) -> None:
    before = train(checkpoint, tmp_path / "before", epochs=0)
    after = train(checkpoint, tmp_path / "after", epochs=1)
    for name in ("conv1.0.weight", "layer4.0.conv3.weight", "fc.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert len(json.loads((tmp_path / "after" / CURVE).read_text())) == 1
    again = train(checkpoint, tmp_path / "again", epochs=1)
    assert all(torch.equal(again[name], value) for name, value in after.items())
