"""A family of networks is one record: a toy one goes through the real command line."""

import ast
import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.__main__ import main
from pipeline.base.errors import InputError
from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.groups import STEM, stage_of
from pipeline.compress.training.regularize import drop_while_training
from pipeline.networks.codes import PAPER
from pipeline.networks.families import FAMILIES, FamilyEntry, family_of
from pipeline.networks.family import Family, Structure
from pipeline.networks.resnest.network import NAMED
from pipeline.networks.rewrites import Normalization, with_normalization
from pipeline.recipe.input_shape import square
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.models import ALONE, known_names
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.recipe.resnest import ResNeStModel
from pipeline.recipe.training import TrainConfig
from pipeline.stages.known import KNOWN
from tests.making.networks import randomise

PACKAGE = Path(__file__).parents[2] / "pipeline"


class TinyModel(ModelConfig):
    """The keys of a toy family.

    Attributes:
        name: of the network.
        filters: of every layer.
    """

    name: Literal["tiny", "tinier"]
    filters: Annotated[int, Field(ge=4, le=64)] = 16


class Tiny(nn.Module):
    """Two convolutions, a residual block, a pool and a classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first = self._layer(3, channels, 2)
        self.body = nn.Sequential(
            self._layer(channels, channels, 2), self._layer(channels, channels, 1)
        )
        self.head = nn.Conv2d(channels, classes, 1)

    def _layer(self, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        inner = self.body[0](x)
        x = inner + self.body[1](inner)
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)  # type: ignore[no-any-return]


TINY = Family(
    build=lambda config, classes: Tiny(config.filters, classes),
    structure=lambda model: Structure(classifier="head", stages=("body",), dense=("first", "head")),
)
RECIPE = """\
model: {name: tiny, input_size: 32}
data: {kind: digits}
train: {epochs: 2, batch_size: 64, learning_rate: 0.1}
prune:
  macs: 0.7
  round_to: 4
  finetune: {epochs: 1, batch_size: 64, learning_rate: 0.02}
qat:
  train: {epochs: 1, batch_size: 64, learning_rate: 0.01}
target: {device: a test, format: onnx, precision: int8, input: uint8_rgb}
measure: {rounds: 3, warmup: 1}
threads: 1
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy family beside the real ones."""
    entry = FamilyEntry(options=TinyModel, family=lambda: TINY)
    monkeypatch.setitem(FAMILIES, "tiny", entry)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("toy")
def test_a_toy_family_goes_through_the_command_line(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 0, capfd.readouterr()
    run = tmp_path / "out" / "tiny"
    report = json.loads((run / "report.json").read_text())
    (target,) = report["targets"]
    assert (run / "model.onnx").stat().st_size == target["size_bytes"] > 0
    assert target["scales_exact"]["same"] == target["scales_exact"]["total"] > 0
    assert target["int8_coverage"] == 1.0
    assert report["model"] | {"params": 0} == {
        "name": "tiny",
        "block": None,
        "input_shape": [1, 3, 32, 32],
        "num_classes": 10,
        "params": 0,
        "macs": sum((16 * 16 * 16 * 27, 8 * 8 * 16 * 144, 8 * 8 * 16 * 144, 160)),
    }
    widths = {layer["name"]: (layer["before"], layer["after"]) for layer in target["layers"]}
    assert widths["head"] == (10, 10)
    assert widths["first.0"][1] < 16 or widths["body.0.0"][1] < 16
    assert "tiny," in (run / "report.md").read_text()
    capfd.readouterr()
    assert main(["inspect", str(run), "--rounds", "1"]) == 0
    assert "body.1.0" in capfd.readouterr().out


@pytest.mark.usefixtures("toy")
def test_a_recipe_is_checked_by_the_keys_of_the_family_it_names(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (read,) = load_recipes([recipe], known=KNOWN)
    assert isinstance(read.model, TinyModel)
    assert family_of(read.model) is TINY
    assert Recipe.model_validate(read.model_dump(), context=KNOWN).model == read.model
    recipe.write_text(RECIPE.replace("32}", "32, radix: 2, filters: 3}"))
    assert main(["check", str(recipe)]) == 2
    said = capfd.readouterr().err
    allowed = "name, input_size, channels, checkpoint, head, weights, filters"
    assert f"unknown key 'radix'; allowed: {allowed}" in said
    assert "model.filters: got 3; must be a whole number >= 4 and <= 64" in said
    recipe.write_text(RECIPE.replace("32}", "32, filters: 8}").replace("tiny", "resnest50"))
    assert main(["check", str(recipe)]) == 2
    assert "unknown key 'filters'" in capfd.readouterr().err


@pytest.mark.usefixtures("toy")
def test_an_unknown_name_is_told_every_known_one(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    known = ", ".join([*known_names(ALONE), "tiny", "tinier"])
    for name, near in (("tinies", "tinier"), ("resnest5", "resnest50")):
        recipe.write_text(RECIPE.replace("tiny", name))
        assert main(["check", str(recipe)]) == 2
        said = " ".join(capfd.readouterr().err.split())
        assert f"model.name: got '{name}'; must be one of {known}; did you mean '{near}'?" in said
    recipe.write_text(RECIPE.replace("name: tiny, ", ""))
    assert main(["check", str(recipe)]) == 2
    assert f"model.name: missing; add it: one of {known}" in " ".join(
        capfd.readouterr().err.split()
    )


def test_recipes_and_networks_know_the_same_families() -> None:
    assert tuple(one.options for one in FAMILIES.values()) == ALONE
    names = [name for kind in ALONE for name in kind.names()]
    assert len(set(names)) == len(names)
    assert set(ResNeStModel.names()) == set(NAMED)


def test_only_the_dict_of_families_imports_a_family() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith("pipeline.networks.resnest") for name in names):
                found.add(path.relative_to(PACKAGE).as_posix())
    inside = {name for name in found if name.startswith("networks/resnest/")}
    assert found - inside == {"networks/families.py"}


def test_what_a_family_leaves_out_is_the_network_itself() -> None:
    model = Tiny(8, 5).eval()
    randomise(model)
    x = torch.randint(0, 256, (3, 3, 32, 32)).float()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    normalization = Normalization(mean=mean, std=std)
    with torch.no_grad():
        normalized = (x / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
            :, None, None
        ]
        wanted = model(normalized)
        assert torch.equal(TINY.prunable(model)(normalized), wanted)
        assert torch.equal(TINY.deploy(model, None)(normalized), wanted)
        deploy = TINY.deploy(model, normalization)
        assert torch.allclose(deploy(x), wanted, atol=1e-5)
        assert torch.allclose(with_normalization(deploy, None)(x), wanted, atol=1e-5)
    layers = {name for name, _ in model.named_parameters()}
    assert {name for name, p in deploy.named_parameters() if p.requires_grad} == layers
    (given,) = TINY.given_to_others(model.train()).items()
    assert given[0] == PAPER
    assert not given[1].training
    assert TINY.checkpoint(model).head == ("head.weight", "head.bias")


def test_a_classifier_that_convolves_keeps_its_classes_when_pruned() -> None:
    model = Tiny(8, 5).eval()
    groups = groups_of(model, square(32), TINY.structure(model))
    assert [group.name for group in groups] == ["first.0", "body.0.0"]
    assert [group.stage for group in groups] == [STEM, "body"]
    assert groups[1].readers == ("body.1.0", "head")


def test_a_stage_is_a_whole_part_of_a_path() -> None:
    stages = ("features.1", "features.10")
    assert stage_of("features.1.0.conv", stages) == "features.1"
    assert stage_of("features.10", stages) == "features.10"
    assert stage_of("features.11.0", stages) == stage_of("features", stages) == STEM


@pytest.mark.parametrize("key", ["dropblock", "dropout"])
def test_a_family_that_drops_nothing_says_so(key: str) -> None:
    config = TrainConfig.model_validate(
        {"epochs": 1, "batch_size": 2, "learning_rate": 0.1, key: 0.1}
    )
    with pytest.raises(InputError, match=rf"train\.{key}: got 0\.1; .* set it to 0"):
        drop_while_training(TINY, Tiny(8, 5), config)
    drop_while_training(TINY, Tiny(8, 5), config.model_copy(update={key: 0.0}))
