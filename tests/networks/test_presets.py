"""What recipes take from the published weights of torchvision and timm, and those weights."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision import models

from pipeline.base.errors import InputError
from pipeline.networks.checkpoints import load_checkpoint
from pipeline.networks.families import family_of
from pipeline.networks.hub import local_file
from pipeline.recipe.data import IMAGENET_MEAN
from pipeline.recipe.recipe import Recipe, load_recipes, resolved_yaml
from pipeline.stages.known import KNOWN
from pipeline.stages.presets import with_preset
from pipeline.tasks.images.load import decoded
from pipeline.tasks.images.pixels import normalize
from tests.making.cli import pocketnest
from tests.making.photos import make_folders

V1 = "torchvision:MobileNet_V2_Weights.IMAGENET1K_V1"
RECIPE = """\
model: MODEL
data: DATA
train: {epochs: 1, batch_size: 8, learning_rate: 0.01}
qat: {train: {epochs: 1, batch_size: 8, learning_rate: 0.01}}
guard: {accuracy_drop_pt: null}
target: {device: a phone, format: onnx, precision: float}
measure: {rounds: 5}
"""


def recipe_file(folder: Path, model: dict[str, Any], data: dict[str, Any] | None = None) -> Path:
    path = folder / "recipe.yaml"
    given = {"kind": "image_folder", "path": str(folder / "photos")} | (data or {})
    text = RECIPE.replace("MODEL", yaml.safe_dump(model, default_flow_style=True).strip())
    path.write_text(text.replace("DATA", yaml.safe_dump(given, default_flow_style=True).strip()))
    return path


def resolved(
    folder: Path, model: dict[str, Any], data: dict[str, Any] | None = None
) -> tuple[Recipe, str | None]:
    (recipe,) = load_recipes([recipe_file(folder, model, data)], known=KNOWN)
    return with_preset(recipe)


def test_torchvision_brings_what_its_weights_were_prepared_by(tmp_path: Path) -> None:
    recipe, said = resolved(tmp_path, {"name": "torchvision:mobilenet_v2"})
    assert recipe.model.input_size == 224
    assert recipe.data.crop_pct == round(224 / 232, 6)
    assert recipe.data.interpolation == "bilinear"
    assert said is not None
    assert said.endswith("as torchvision:MobileNet_V2_Weights.IMAGENET1K_V2 has it")
    recipe, _ = resolved(tmp_path, {"name": "torchvision:mobilenet_v2", "checkpoint": V1})
    assert recipe.data.crop_pct == 0.875
    recipe, _ = resolved(tmp_path, {"name": "torchvision:efficientnet_b0"})
    assert recipe.data.interpolation == "bicubic"
    recipe, _ = resolved(tmp_path, {"name": "torchvision:inception_v3"})
    assert recipe.model.input_size == 299


def test_timm_brings_what_its_weights_were_prepared_by(tmp_path: Path) -> None:
    recipe, said = resolved(tmp_path, {"name": "timm:test_resnet"})
    assert said is not None
    assert (recipe.model.input_size, recipe.data.crop_pct) == (160, 0.95)
    assert (recipe.data.mean, recipe.data.std) == ((0.5,) * 3, (0.5,) * 3)
    recipe, _ = resolved(tmp_path, {"name": "timm:resnet18", "checkpoint": "timm:resnet18.tv_in1k"})
    assert (recipe.data.crop_pct, recipe.data.interpolation) == (0.875, "bilinear")
    recipe, _ = resolved(tmp_path, {"name": "timm:resnet18"})
    assert (recipe.data.crop_pct, recipe.data.interpolation) == (0.95, "bicubic")


def test_what_a_recipe_says_stays(tmp_path: Path) -> None:
    model = {"name": "timm:test_resnet", "input_size": 96}
    recipe, said = resolved(tmp_path, model, {"crop_pct": 1.0, "mean": [0.1, 0.2, 0.3]})
    assert (recipe.model.input_size, recipe.data.crop_pct) == (96, 1.0)
    assert (recipe.data.mean, recipe.data.std) == ((0.1, 0.2, 0.3), (0.5,) * 3)
    assert said is not None
    assert "data.std [0.5, 0.5, 0.5]" in said
    assert "mean" not in said
    again, nothing = with_preset(recipe)
    assert (again, nothing) == (recipe, None), "all is said now"


def test_other_networks_and_data_have_the_defaults(tmp_path: Path) -> None:
    resnest = {"name": "resnest50", "checkpoint": "timm:resnest50d.in1k"}
    recipe, said = resolved(tmp_path, resnest)
    assert said is None
    assert (recipe.data.mean, recipe.data.crop_pct) == (IMAGENET_MEAN, 1.0)
    path = recipe_file(tmp_path, {"name": "timm:test_resnet"})
    path.write_text(path.read_text().replace(f"path: {tmp_path / 'photos'}", "test_images: 9"))
    path.write_text(path.read_text().replace("image_folder", "digits"))
    recipe, said = with_preset(load_recipes([path], known=KNOWN)[0])
    assert said is not None
    assert said.startswith("recipe: model.input_size 160, as timm:test_resnet has it")


def test_what_does_not_fit_to_the_preset_is_said(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, {"name": "timm:test_resnet"})
    sizes = "learning_rate: 0.01, sizes: [192], shrink: crop}\nqat"
    path.write_text(path.read_text().replace("learning_rate: 0.01}\nqat", sizes))
    (recipe,) = load_recipes([path], known=KNOWN)
    with pytest.raises(InputError, match=r"^train: .*192.*timm:test_resnet has \(model.input_size"):
        with_preset(recipe)


@pytest.mark.parametrize("size", [(300, 400), (257, 225), (200, 120), (640, 481)])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "efficientnet_b0"])
def test_photos_are_prepared_as_the_weights_have_it(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """torchvision's own transforms beside ours, to the level where Pillow orders axes itself."""
    recipe, _ = resolved(tmp_path, {"name": f"torchvision:{name}"})
    noise = np.random.default_rng(0).integers(80, 176, (*size, 3), np.uint8)
    file = tmp_path / "photo.png"
    Image.fromarray(noise).save(file)
    shape = recipe.model.input_shape
    pixels = decoded(recipe.data, file.read_bytes(), file, shape)[None]
    ours = normalize(pixels, recipe.data.mean, recipe.data.std)[0]
    theirs = models.get_model_weights(name).DEFAULT.transforms()(Image.fromarray(noise))
    levels = (ours - theirs).abs() * torch.tensor(recipe.data.std)[:, None, None] * 255
    assert float(levels.max()) < 1.01
    assert float(levels.mean()) < 0.2


def test_published_weights_are_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError) as caught:
        local_file(V1)
    said = str(caught.value)
    assert said.startswith(f"model.checkpoint: {V1} is not in {tmp_path / 'hub' / 'checkpoints'}")
    assert "(<urlopen error no route to host>; offline?)" in said
    assert "fetch https://download.pytorch.org/models/mobilenet_v2-b0353104.pth where" in said
    (recipe,) = load_recipes(
        [recipe_file(tmp_path, {"name": "torchvision:mobilenet_v2", "checkpoint": V1})],
        known=KNOWN,
    )
    family = family_of(recipe.model)
    one, other = (family.build(recipe.model, 1000) for _ in range(2))
    cached = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-b0353104.pth"
    torch.save(one.state_dict(), cached)
    assert local_file(V1) == cached
    load_checkpoint(other, local_file(V1), family.checkpoint(other))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"near are .*torchvision:MobileNet_V2_Weights\."):
        local_file("torchvision:MobileNetV2_Weights.IMAGENET1K_V1")


@pytest.mark.slow
def test_a_runs_own_recipe_has_what_was_taken(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    for name in ("day", "night"):
        (tmp_path / "photos" / name).rename(tmp_path / "photos" / f"test-{name}")
    path = recipe_file(tmp_path, {"name": "timm:test_resnet"}, {"calibration_images": 5})
    done = pocketnest("run", path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "recipe: model.input_size 160, data.crop_pct 0.95, data.interpolation bilinear" in said
    kept = (tmp_path / "out" / "recipe" / "recipe.yaml").read_text()
    tree = yaml.safe_load(kept)
    assert tree["model"]["input_size"] == 160
    assert tree["data"]["mean"] == [0.5, 0.5, 0.5]
    folder = tmp_path / "out" / "recipe"
    assert kept == resolved_yaml(with_preset(load_recipes([path], known=KNOWN)[0])[0], folder)
    again = pocketnest("run", tmp_path / "out" / "recipe" / "recipe.yaml", "--explain")
    assert "as timm:test_resnet has it" not in again.stdout
