"""The bundle's Swift in a compiler, as a package: `nox -s swift` brings Debian's.

Core ML, CoreGraphics and CoreVideo are stubs that declare what the code uses of them. They keep
what Core ML is given; how a photo becomes pixels needs none of them, and is run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.commands.bundle import photos
from pipeline.commands.bundle.golden import Vectors, write
from pipeline.commands.bundle.snippets import snippets
from pipeline.recipe.input_shape import square
from pipeline.tasks import classification
from pipeline.tasks.images.preparation import Preparation
from tests.making import networks
from tests.making.bundles import VERSIONS, code_of, contract
from tests.snippets.swift_root import in_root

if (FOLDER := os.environ.get("POCKETNEST_SWIFT")) is None:
    pytest.skip("run by `nox -s swift`, which brings a compiler", allow_module_level=True)

ROOT = Path(FOLDER)
STUBS = Path(__file__).parent / "swift"
LINKED = "-Xswiftc -I/stubs -Xlinker -L/stubs " + " ".join(
    f"-Xlinker -l{name}" for name in ("CoreML", "CoreVideo", "CoreGraphics")
)
GIVEN: dict[str, dict[str, Any]] = {
    "logits": {},
    "probabilities": {"gives": "probabilities"},
    "classifier": {"gives": "probabilities", "kind": "dictionary", "dtype": "float64"},
    "yes": {"gives": "probabilities", "shape": (1, 1), "classes": 2},
    "labels": {"shape": (1, 4), "classes": 4, "threshold": 0.2, "above": -1.386},
}


def well(command: str, folder: str = "/") -> str:
    done = in_root(ROOT, command, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", autouse=True)
def stubs() -> Iterator[None]:
    """The modules of Apple's that the code imports, compiled."""
    place = ROOT / "stubs"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(STUBS, place)
    for name in ("CoreVideo", "CoreGraphics", "CoreML"):
        linked = "-lCoreVideo" if name == "CoreML" else ""
        well(
            f"swiftc -parse-as-library -emit-module -emit-library -module-name {name} -I . -L . "
            f"-o lib{name}.so -emit-module-path {name}.swiftmodule {name}.swift {linked}",
            "/stubs",
        )
    yield
    shutil.rmtree(place)


@pytest.fixture
def place() -> Iterator[Path]:
    folder = ROOT / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def package(folder: Path, kind: str, *, pixels: bool) -> None:
    """A bundle's files, its model but a name, and one golden image."""
    plain = contract("coreml", pixels=pixels)
    output = plain.output.model_copy(update=GIVEN[kind])
    for path, text in snippets(plain.model_copy(update={"output": output}), VERSIONS).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    for name in ("contract.json", "model_card.md", "SHA256SUMS", "labels.txt"):
        (folder / name).touch()
    (folder / "model.mlpackage").mkdir()
    (folder / "model.mlpackage" / "Manifest.json").touch()
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    zeros = np.zeros((3, networks.CLASSES), np.float32)
    found = Vectors(pixels=images, labels=(0, 1, 2), logits=zeros, tolerance=1.0, why="so")
    write(found, folder / "golden", classification)
    photos.write(folder / "golden", Preparation(shape=square(32)))


@pytest.mark.parametrize("pixels", [False, True], ids=["normalized", "pixels"])
@pytest.mark.parametrize("kind", GIVEN)
def test_the_package_builds(kind: str, pixels: bool, place: Path) -> None:
    package(place, kind, pixels=pixels)
    said = well(f"swift build --disable-sandbox {LINKED}", "/bundle")
    assert "Build complete!" in said
    assert "warning:" not in said


def test_photos_become_the_pixels_of_python(place: Path) -> None:
    """All golden photos; an answer of the stub is none, and is seen to be none."""
    package(place, "logits", pixels=False)
    asked = f"swift test --disable-sandbox {LINKED}"
    good = f"{asked} --filter testPreparesPhotosAsTrainingDid"
    assert "Executed 1 test, with 0 failures" in well(good, "/bundle")
    answers = f"CAPTURED=/bundle/captured {asked} --filter testAnswersAsTheFileDoes"
    refused = in_root(ROOT, answers, folder="/bundle")
    assert refused.returncode != 0
    assert f'("0") is not equal to ("{networks.CLASSES}")' in refused.stdout + refused.stderr
    last = np.fromfile(place / "golden" / "02.rgb", np.uint8).reshape(32, 32, 3)
    tensor = code_of(place).tensor_of(last).astype(np.float16)
    assert (place / "captured").read_bytes() == tensor.tobytes(), "what Core ML is given"
    photo = place / "golden" / "photos" / "grey16.rgb"
    photo.write_bytes(photo.read_bytes()[::-1])
    spoiled = in_root(ROOT, good, folder="/bundle")
    assert spoiled.returncode != 0
    assert "grey16" in spoiled.stdout + spoiled.stderr
