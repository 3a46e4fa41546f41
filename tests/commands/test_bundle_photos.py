"""One preparation of photos: the pipeline's, the bundle's Python, and the golden photos."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.bundle import photos
from pipeline.commands.bundle.snippets import snippets
from pipeline.tasks.images.pixels import decode, middle
from pipeline.tasks.images.preparation import Preparation
from tests.making.bundles import VERSIONS, contract_for
from tests.making.photo_sizes import PREPARATIONS, random_photos
from tests.making.swift import functions

EVERY = pytest.mark.parametrize("preparation", PREPARATIONS.values(), ids=PREPARATIONS)


def code_for(preparation: Preparation, bundle: Path) -> dict[str, Any]:
    """The names of a bundle's Python code."""
    path = bundle / "python" / "classify.py"
    text = snippets(contract_for(preparation), VERSIONS)["python/classify.py"]
    names: dict[str, Any] = {"__file__": str(path)}
    exec(compile(text, str(path), "exec"), names)
    return names


def ours(content: bytes, preparation: Preparation) -> np.ndarray:
    pixels = torch.tensor(decode(content, Path("photo"), preparation))
    return middle(pixels, preparation.shape).permute(1, 2, 0).numpy()


@EVERY
def test_photos_of_any_size_become_the_same_pixels(
    preparation: Preparation, tmp_path: Path
) -> None:
    rgb_of = code_for(preparation, tmp_path)["rgb_of"]
    for noise in random_photos(500):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "bmp")
        found = rgb_of(io.BytesIO(file.getvalue()))
        assert np.array_equal(found, ours(file.getvalue(), preparation)), noise.shape


@EVERY
def test_golden_photos_of_every_kind_are_proved(
    preparation: Preparation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = tmp_path / "golden"
    golden.mkdir()
    photos.write(golden, preparation)
    code = code_for(preparation, tmp_path)
    assert code["check_photos"](), capsys.readouterr().out
    modes = set()
    for kind in photos.KINDS:
        file = golden / "photos" / kind.file
        with Image.open(file) as image:
            modes.add(image.mode)
        decoded = io.BytesIO(file.with_suffix(".ppm").read_bytes())
        pixels = np.frombuffer(file.with_suffix(".rgb").read_bytes(), np.uint8)
        assert np.array_equal(code["rgb_of"](decoded).ravel(), pixels), "prepared is decoded, fit"
    assert modes == {"RGB", "L", "I;16", "P", "CMYK", "RGBA"}
    spoiled = golden / "photos" / "turned.rgb"
    spoiled.write_bytes(bytes([spoiled.read_bytes()[0] ^ 1]) + spoiled.read_bytes()[1:])
    assert not code["check_photos"]()
    assert "turned.jpg: 1 of 255 off" in capsys.readouterr().out


def test_the_same_preparation_gives_the_same_golden_photos(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        photos.write(tmp_path / name, PREPARATIONS["wide"])
        files = sorted((tmp_path / name).rglob("*.*"))
        found.append([(file.name, file.read_bytes()) for file in files])
    assert found[0] == found[1]
    assert len(found[0]) == 3 * len(photos.KINDS) + 1


def test_what_is_transparent_lies_on_the_colour_by_the_words_of_the_contract() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours, "RGBA").save(file, "png")
    preparation = Preparation(
        shape=PREPARATIONS["square"].shape.scaled(64), background=(9, 99, 250)
    )
    over, alpha = colours[..., :3].astype(int), colours[..., 3:].astype(int)
    laid = (alpha * over + (255 - alpha) * np.array(preparation.background) + 127) // 255
    assert np.array_equal(ours(file.getvalue(), preparation), laid)


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_of_16_bits_the_upper_8_count(suffix: str, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 2**16, (32, 32), np.uint16)
    file = tmp_path / f"grey.{suffix}"
    Image.fromarray(levels).save(file)
    preparation = PREPARATIONS["square"]
    expected = np.repeat((levels >> 8)[..., None], 3, 2)
    assert np.array_equal(ours(file.read_bytes(), preparation), expected)
    assert np.array_equal(code_for(preparation, tmp_path)["rgb_of"](file), expected)


def test_heic_is_read_where_pillow_can(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    file = tmp_path / "photo.heic"
    Image.fromarray(next(iter(random_photos(1)))).resize((80, 60)).save(file)
    preparation = PREPARATIONS["square"]
    found = code_for(preparation, tmp_path)["rgb_of"](file)
    assert np.array_equal(found, ours(file.read_bytes(), preparation))


@EVERY
def test_swift_read_as_python_gives_the_same_pixels(preparation: Preparation) -> None:
    text = snippets(contract_for(preparation, "coreml"), VERSIONS)["swift/Photo.swift"]
    photo = functions(text, "Photo")
    for noise in random_photos(28, most=50):
        height, width, _ = noise.shape
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "bmp")
        expected = ours(file.getvalue(), preparation).ravel().tolist()
        found = photo.prepared(noise.ravel().tolist(), width=width, height=height)
        assert found == expected, noise.shape
    rgbx = np.dstack([noise, np.zeros((height, width, 1), np.uint8)]).ravel().tolist()
    assert photo.prepared(rgbx, width=width, height=height, step=4) == expected
