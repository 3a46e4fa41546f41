"""torchvision's networks, timm's and the user's own, through the real command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.base.errors import InputError
from pipeline.networks.families import family_of
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.stages.known import KNOWN
from tests.making.cli import pocketnest

NETS = """\
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.near = nn.Conv2d(channels, channels, 1)
        self.squeeze, self.excite = nn.Linear(2 * channels, 8), nn.Linear(8, 2 * channels)

    def forward(self, x):
        y = torch.cat([F.hardswish(self.norm(self.wide(x))), self.near(x)], dim=1)
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3))))))
        return y * gate[:, :, None, None]


class Net(nn.Module):
    def __init__(self, num_classes, channels):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU6()
        )
        self.block = Block(channels)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(2 * channels, num_classes)

    def forward(self, x):
        return self.fc(self.drop(self.block(self.stem(x)).mean((2, 3))))


def small(num_classes, channels=8):
    return Net(num_classes, channels)


def deformed(num_classes):
    net = Net(num_classes, 8)
    net.block = Deformed()
    return net


class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Conv2d(8, 18, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(16, 8, 3, 3))

    def forward(self, x):
        from torchvision.ops import deform_conv2d

        return deform_conv2d(x, self.offsets(x), self.weight, padding=1)


def no_network(num_classes):
    return num_classes
"""
RECIPE = """\
model: {name: "python:nets.py:FUNCTION", input_size: 16}
data: {kind: digits, test_images: 64, calibration_images: 64}
train: {epochs: 2, batch_size: 64, learning_rate: 0.1}
qat:
  train: {epochs: 1, batch_size: 64, learning_rate: 0.01}
guard: {accuracy_drop_pt: null}
target: {device: a phone, format: FORMAT, precision: int8}
measure: {rounds: 5}
threads: 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def recipe(folder: Path, function: str = "small", form: str = "onnx") -> Path:
    path = folder / f"{form}.yaml"
    path.write_text(RECIPE.replace("FUNCTION", function).replace("FORMAT", form))
    return path


def asked(**model: object) -> Recipe:
    base = load_recipes([Path("recipes/resnest50/android-litert-int8.yaml")], known=KNOWN)[0]
    return Recipe.model_validate(base.model_dump() | {"model": model}, context=KNOWN)


@pytest.mark.slow
def test_a_users_own_network_goes_through_all_three_formats(folder: Path) -> None:
    """A block of two branches, a concatenation, a hard swish, squeeze and excite."""
    recipes = [recipe(folder, form=form) for form in ("onnx", "tflite", "coreml")]
    done = pocketnest("run", *recipes, "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    for form in ("onnx", "tflite", "coreml"):
        report = json.loads((folder / "out" / form / "report.json").read_text())
        (target,) = report["targets"]
        assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 0
        assert target["int8_coverage"] == 1.0
        assert target["parity"]["misses"] == []
        assert target["parity"]["layers_alike"] == target["parity"]["layers"] > 10
        if form == "tflite":
            assert target["partitions"] == 1
    assert report["model"]["name"] == "python:nets.py:small", "nobody's folders"


@pytest.mark.slow
def test_what_no_runtime_has_is_refused_before_any_training(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(folder / "out")
    assert main(["run", str(recipe(folder, "deformed")), "--out", out]) == 2
    said = capfd.readouterr()
    assert "deform_conv2d in block: no rule for this operation" in " ".join(said.err.split())
    assert "train" not in said.out


def test_changed_code_makes_another_network(folder: Path) -> None:
    (read,) = load_recipes([recipe(folder)], known=KNOWN)
    family = family_of(read.model)
    before = family.decided_by(read.model)
    (folder / "nets.py").write_text(NETS + "\n# changed\n")
    assert family.decided_by(read.model) != before
    assert list(before) == ["nets.py"]


LATE = """\
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "site"))


def late(num_classes):
    from parts.heads import head

    return head(num_classes)
"""


def test_what_is_imported_late_decides_a_network_before_it_is_built(tmp_path: Path) -> None:
    """Else a second run would train anew, and so would the second recipe of the first one."""
    parts = tmp_path / "site" / "parts"
    parts.mkdir(parents=True)
    (tmp_path / "nets.py").write_text(LATE)
    (tmp_path / "other.py").write_text("import parts.unused\n")
    (parts / "__init__.py").write_text("")
    (parts / "unused.py").write_text("")
    (parts / "sizes.py").write_text("SIZE = 3\n")
    (parts / "broken.py").write_text("def\n")
    (parts / "heads.py").write_text(
        "from torch import nn\nfrom . import sizes\n\n\ndef head(classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, classes, sizes.SIZE), nn.AdaptiveAvgPool2d(1),"
        " nn.Flatten())\n\n\ndef never():\n    import parts.broken\n"
    )
    config = asked(name=f"python:{tmp_path}/nets.py:late", input_size=32).model
    family = family_of(config)
    before = family.decided_by(config)
    names = ("__init__", "broken", "heads", "sizes")
    assert list(before) == ["nets.py", *(f"site/parts/{name}.py" for name in names)]
    family.build(config, 4)
    assert family.decided_by(config) == before
    (parts / "sizes.py").write_text("SIZE = 5\n")
    assert family.decided_by(config) != before


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"name": "torchvision:resnet19"}, "no classifier of that name; near are torchvision:res"),
        ({"name": "timm:resnet19"}, "this timm has no classifier of that name"),
        (
            {"name": "torchvision:resnet18", "arguments": {"depth": 3}},
            "model.arguments: torchvision:resnet18 was not built",
        ),
        ({"name": "torchvision:alexnet", "input_size": 32}, "cannot take images of 32 x 32"),
        ({"name": "python:/no/such/file.py:net"}, "no such file"),
    ],
)
def test_what_cannot_be_built_is_told(model: dict[str, object], why: str) -> None:
    config = asked(**model).model
    with pytest.raises(InputError, match=why):
        family_of(config).build(config, 10)


@pytest.mark.parametrize(
    ("function", "why"),
    [("no_network", "returns a int; it must return"), ("nothing", "has no function nothing; it")],
)
def test_what_a_file_does_not_give_is_told(folder: Path, function: str, why: str) -> None:
    (read,) = load_recipes([recipe(folder, function)], known=KNOWN)
    with pytest.raises(InputError, match=why):
        family_of(read.model).build(read.model, 10)


@pytest.mark.parametrize("channels", [1, 3])
def test_where_is_what(channels: int) -> None:
    config = asked(
        name="torchvision:resnet18", input_size=[64, 96], channels=channels, checkpoint=None
    ).model
    family = family_of(config)
    model = family.build(config, 7)
    found = family.structure(model)
    assert found.classifier == "fc"
    assert found.stages == ("layer1", "layer2", "layer3", "layer4")
    assert found.dense == ("conv1", "fc")
    assert model(torch.zeros(2, channels, 64, 96)).shape == (2, 7)
