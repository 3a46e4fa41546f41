"""Pictures that people have, through the command line: kinds, stray files, damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.finished_run import open_runs
from pipeline.stages.known import KNOWN
from pipeline.tasks.images.load import decoded, load_dataset
from pipeline.tasks.images.pixels import normalize
from tests.making.bundles import code_of, unpacked
from tests.making.cli import pocketnest

pytestmark = pytest.mark.slow

NET = """\
from torch import nn


def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
RECIPE = """\
model: {name: "python:net.py:net", input_size: 16}
data:
  kind: image_folder
  path: photos
  calibration_images: 8
  interpolation: bicubic
  crop_pct: 0.8
  background: [0, 128, 255]
  damaged: skip
  damaged_share: 0.1
train: {epochs: 2, batch_size: 8, learning_rate: 0.1, augment: {crop: [0.5, 1.0]}}
qat: {train: {epochs: 1, batch_size: 8, learning_rate: 0.01}}
guard: {accuracy_drop_pt: null}
target: {device: a phone, format: onnx, precision: float}
measure: {rounds: 5}
"""
KINDS = {
    "plain.png": {},
    "photo.jpg": {},
    "photo.JFIF": {"format": "jpeg"},
    "photo.webp": {"lossless": True},
    "photo.bmp": {},
    "turned.jpg": {"exif": 6},
    "turned.png": {"exif": 3},
    "grey.png": {"mode": "L"},
    "grey16.png": {"mode": "I;16"},
    "grey16.tif": {"mode": "I;16"},
    "grey16.pgm": {"mode": "I;16"},
    "palette.png": {"mode": "P"},
    "two.png": {"mode": "1"},
    "print.tif": {"mode": "CMYK"},
    "print.jpg": {"mode": "CMYK"},
    "clear.png": {"mode": "RGBA"},
    "clear.webp": {"mode": "RGBA", "lossless": True},
    "clear-grey.png": {"mode": "LA"},
    **({"photo.avif": {}} if features.check("avif") else {}),
}


def picture(seed: int, mode: str) -> Image.Image:
    draw = np.random.default_rng(seed)
    # As modern phones' are not: of other proportions each, a few pixels only.
    noise = draw.integers(0, 256, (*draw.integers(17, 60, 2), 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) << 8 | noise[..., 1])
    return Image.fromarray(noise, "RGBA").convert("RGB" if mode == "CMYK" else mode).convert(mode)


def fill(folder: Path, seed: int) -> None:
    """One picture of every kind, and what lies beside pictures."""
    folder.mkdir(parents=True)
    for number, (name, how) in enumerate(KINDS.items()):
        options = {key: value for key, value in how.items() if key not in ("mode", "exif")}
        if "exif" in how:
            options["exif"] = Image.Exif()
            options["exif"][0x0112] = how["exif"]
        image = picture(100 * seed + number, how.get("mode", "RGB"))
        image.save(folder / name, **options)
    for name in ("loop.gif", "live.HEIC", "notes.txt", "Thumbs.db", ".hidden"):
        (folder / name).write_bytes(b"anything")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a recipe, and what its run left."""
    place = tmp_path_factory.mktemp("place")
    (place / "net.py").write_text(NET)
    (place / "recipe.yaml").write_text(RECIPE)
    for seed, below in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        fill(place / "photos" / below, seed)
    for damaged in ("train/dog/photo.jpg", "test/cat/plain.png"):
        whole = place / "photos" / damaged
        (whole.with_name(f"torn{whole.suffix}")).write_bytes(whole.read_bytes()[:150])
    (place / "photos" / "train" / "__MACOSX" / "cat").mkdir(parents=True)
    (place / "photos" / "train" / "__MACOSX" / "cat" / "._plain.png").write_bytes(b"resources")
    (place / "photos" / "train" / "documents").mkdir()
    (place / "photos" / "train" / "documents" / "readme.txt").write_bytes(b"text")
    shutil.copy(place / "photos/train/cat/plain.png", place / "photos/train/loose.png")
    done = pocketnest("run", place / "recipe.yaml", "--out", place / "out")
    (place / "said.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_what_is_left_out_is_named_and_counted(place: Path) -> None:
    said = " ".join((place / "said.txt").read_text().split())
    assert "data.train: no classes, since no image is in these folders: '__MACOSX'" in said
    assert "'documents'" in said
    assert "data.train: in no class folder, and passed over: loose.png" in said
    assert "data.train: passed over: 2 .gif" in said
    assert "; save them as JPEG or PNG" in said
    assert "data.test.test: passed over: 2 .heic" in said
    assert "`pip install pillow-heif` reads them, or save them as JPEG or PNG" in said
    files = 2 * len(KINDS) + 1
    assert f"data.train: 1 of {files} image files are damaged, skipped: dog/torn.jpg" in said
    assert f"data.test.test: 1 of {files} image files are damaged, skipped: cat/torn.png" in said
    data = json.loads((place / "out/recipe/report.json").read_text())["data"]
    assert data["damaged"] == {"train": 1, "test": 1}
    assert data["passed_over"] == {".txt": 5, ".gif": 4, ".heic": 4, ".png": 1}
    assert data["classes"] == ["cat", "dog"]
    assert data["train_images"] == 2 * len(KINDS) - 8
    for page in ("report.md", "report.html"):
        text = (place / "out/recipe" / page).read_text()
        assert "amaged image files, left out: train (1), test (1)" in text


def test_more_damaged_files_than_allowed_are_refused(place: Path) -> None:
    few = pocketnest("run", place / "recipe.yaml", "--set", "data.damaged_share=0.01")
    assert few.returncode == 2
    assert "1 of 39 image files in" in few.stderr
    assert "data.damaged_share allows 0.01 of them (dog/torn.jpg)" in few.stderr
    none = pocketnest(
        *("run", place / "recipe.yaml", "--out", place / "out"), "--set", "data.damaged=refuse"
    )
    assert none.returncode == 2, "what is kept decoded was decoded where they are skipped"
    assert "train/dog/torn.jpg" in none.stderr
    assert "test/cat/torn.png" in none.stderr


def test_predict_goes_on_where_an_image_is_damaged(place: Path) -> None:
    done = pocketnest("predict", place / "out/recipe", place / "photos/test/cat", "--top", "1")
    assert done.returncode == 2
    for name in KINDS:
        assert f"test/cat/{name}\n" in done.stdout
    assert "test/cat/torn.png" not in done.stdout
    assert "test/cat/torn.png: " in done.stderr
    said = " ".join(done.stdout.split())
    assert "passed over: 1 .gif" in said
    assert "1 .heic" in said
    assert "1 .txt" in said


def test_every_kind_is_one_tensor_in_training_predict_and_the_bundle(place: Path) -> None:
    (recipe,) = load_recipes([place / "recipe.yaml"], known=KNOWN)
    dataset = load_dataset(recipe.data, square(16))
    files = sorted((place / "photos/test").glob("*/*"))
    files = [file for file in files if file.name in KINDS]
    tested = dataset.tests["test"].pixels(torch.arange(len(files)))
    done = pocketnest("bundle", place / "out/recipe")
    assert done.returncode == 0, done.stderr
    code = code_of(unpacked(place / "out/recipe/recipe.zip", place))
    answer, (run,) = code.open_model(), open_runs(place / "out/recipe")
    for file, pixels in zip(files, tested, strict=True):
        predicted = decoded(recipe.data, file.read_bytes(), file, square(16))
        assert torch.equal(predicted, pixels), file
        tensor = code.tensor_of(code.rgb_of(file))
        ours = normalize(predicted[None], dataset.mean, dataset.std).numpy()
        assert tensor.tobytes() == ours.tobytes(), file
        assert np.array_equal(answer(tensor), run.logits(predicted[None])[0].numpy()), file
