"""The bundle's code in compilers: `nox -s snippets` brings them, and ONNX Runtime for C++.

Kotlin is compiled against the API of ONNX Runtime for Android and stubs of Android and LiteRT,
whose own classes are not to be had from npm or PyPI. It is run with stubs that keep what the
runtime is given. Swift is parsed in tests/commands/test_bundle.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands.bundle import photos
from pipeline.commands.bundle.golden import Vectors, write
from pipeline.commands.bundle.snippets import snippets
from pipeline.formats.onnx import file as onnx_file
from pipeline.recipe.input_shape import square
from pipeline.tasks import classification
from pipeline.tasks.images.preparation import Preparation
from pipeline.tasks.multilabel import logit_of
from tests.making import HOUR, networks, programs
from tests.making.bundles import VERSIONS, code_of, contract

if (FOLDER := os.environ.get("POCKETNEST_ONNXRUNTIME")) is None:
    pytest.skip("run by `nox -s snippets`, which brings compilers", allow_module_level=True)

PLUGINS = Path(FOLDER) / "Plugins"
LIBRARY = PLUGINS / "Linux" / "x64" / "libonnxruntime.so"
ANDROID = PLUGINS / "Android" / "onnxruntime.aar"
(HEADERS,) = PLUGINS.glob("iOS~/*/ios-arm64_x86_64-simulator/onnxruntime.framework/Headers")
STUBS = Path(__file__).parent / "stubs"
ABOVE = np.float32(logit_of(0.3))
KOTLIN = pytest.mark.parametrize(
    ("form", "variant"), [("tflite", "litert"), ("tflite", "interpreter"), ("onnx", "main")]
)
"""With the source set that holds the classifier."""
PIXELS = pytest.mark.parametrize("pixels", [False, True], ids=["normalized", "pixels"])


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=HOUR)


def well(*command: str | Path) -> str:
    """What a command prints that must end well."""
    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def bundle(form: str, folder: Path, *, pixels: bool) -> Path:
    """A bundle's code, its labels and three images, which answer 0 as far as this knows."""
    (folder / "labels.txt").write_text("".join(f"class {n}\n" for n in range(networks.CLASSES)))
    for path, text in snippets(contract(form, pixels=pixels), VERSIONS).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    keep(folder, images, np.zeros((3, networks.CLASSES), np.float32))
    photos.write(folder / "golden", Preparation(shape=square(32)))
    return folder


def kotlin_of(folder: Path, variant: str) -> list[Path]:
    """The Kotlin files of a bundle's library and its test, built with one classifier."""
    sets = dict.fromkeys((variant, "main", "androidTest"))
    return [file for one in sets for file in (folder / "kotlin" / "src" / one).rglob("*.kt")]


def keep(folder: Path, images: np.ndarray, logits: np.ndarray) -> None:
    found = Vectors(pixels=images, labels=(0, 1, 2), logits=logits, tolerance=1.0, why="so")
    write(found, folder / "golden", classification)


def rgb_of(folder: Path, row: int) -> np.ndarray:
    return np.fromfile(folder / "golden" / f"{row:02d}.rgb", np.uint8).reshape(32, 32, 3)


@PIXELS
def test_cpp_gives_the_golden_answers(pixels: bool, tmp_path: Path) -> None:
    """With the very runtime: answers of Python's ONNX Runtime, within 2e-5."""
    folder = bundle("onnx", tmp_path, pixels=pixels)
    onnx_file.write(
        programs.quantized("radix2", pixels=pixels).program, folder / "model.onnx", pixels=pixels
    )
    program = folder / "golden-check"
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    linked = (LIBRARY, f"-Wl,-rpath,{LIBRARY.parent}")
    well("c++", *strict, "-isystem", HEADERS, folder / "cpp" / "golden.cpp", *linked, "-o", program)
    refused = run(program, folder)
    assert refused.returncode == 1, "the answers are not 0"
    assert "0 of 3 as expected" in refused.stdout
    code = code_of(folder)
    answer = code.open_model()
    images = [rgb_of(folder, row) for row in range(3)]
    expected = np.stack([answer(code.tensor_of(image)) for image in images])
    (folder / "golden").rename(folder / "other")
    keep(folder, np.stack(images).transpose(0, 3, 1, 2), expected)
    photos.write(folder / "golden", Preparation(shape=square(32)))
    said = well(program, folder)
    assert "3 of 3 as expected" in said
    assert f"{len(photos.KINDS)} of {len(photos.KINDS)} photos as expected" in said
    photo = folder / "golden" / "photos" / "grey16.rgb"
    photo.write_bytes(photo.read_bytes()[::-1])
    spoiled = run(program, folder)
    assert spoiled.returncode == 1
    assert "grey16: other pixels" in spoiled.stdout


LOGITS = np.array([0.25, -1000, 3, ABOVE, np.nextafter(ABOVE, np.float32(9)), 3], np.float32)
"""Of labels, one on the threshold, one as little above it as can be, and two alike."""
NAMED_IN_CPP = """\
#include "classifier.hpp"
#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
  std::vector<float> logits;
  for (int n = 1; n < count; ++n) logits.push_back(std::strtof(arguments[n], nullptr));
  for (const std::size_t label : Classifier::Named(logits)) std::printf("%zu ", label);
  std::printf("\\n");
  for (const float share : Classifier::Probabilities(logits)) std::printf("%.9g ", share);
}
"""


def labels_bundle(form: str, folder: Path) -> Path:
    """The code of a file that gives several labels."""
    plain = contract(form, pixels=False)
    several = {"shape": (1, len(LOGITS)), "classes": len(LOGITS), "threshold": 0.3}
    output = plain.output.model_copy(update={**several, "above": float(ABOVE)})
    for path, text in snippets(plain.model_copy(update={"output": output}), VERSIONS).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "labels.txt").write_text("".join(f"label {n}\n" for n in range(len(LOGITS))))
    return folder


def names_as_python_does(folder: Path, said: str) -> None:
    """What a program said of `LOGITS`, beside the bundle's own Python."""
    code = code_of(folder)
    named, shares = (line.split() for line in said.splitlines()[:2])
    assert [int(one) for one in named] == code.named(LOGITS) == [2, 5, 0, 4]
    assert np.allclose([float(one) for one in shares], code.probabilities(LOGITS), atol=1e-7)


def test_cpp_names_labels_as_python_does(tmp_path: Path) -> None:
    folder = labels_bundle("onnx", tmp_path)
    (folder / "cpp" / "names.cpp").write_text(NAMED_IN_CPP)
    program = folder / "names"
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    linked = (LIBRARY, f"-Wl,-rpath,{LIBRARY.parent}")
    well("c++", *strict, "-isystem", HEADERS, folder / "cpp" / "names.cpp", *linked, "-o", program)
    names_as_python_does(folder, well(program, *(f"{one:.9g}" for one in LOGITS)))


@KOTLIN
def test_kotlin_names_labels_as_python_does(
    form: str, variant: str, stubs: Path, android: Path, tmp_path: Path
) -> None:
    folder = labels_bundle(form, tmp_path)
    sources, compiled = [*kotlin_of(folder, variant), STUBS / "Labels.kt"], folder / "c.jar"
    path = f"{android}:{stubs}:{library()}"
    well("kotlinc", *sources, "-cp", path, "-include-runtime", "-d", compiled)
    said = well(
        *("java", "-cp", f"{stubs}:{compiled}:{library()}", "com.example.classifier.LabelsKt"),
        *(folder / "labels.txt", *(f"{one:.9g}" for one in LOGITS)),
    )
    names_as_python_does(folder, said)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classes of what runs on phones only."""
    folder = tmp_path_factory.mktemp("stubs")
    well("javac", "-d", folder, *STUBS.rglob("*.java"))
    return folder


@pytest.fixture(scope="module")
def android(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime's classes for Android, as they are shipped."""
    with zipfile.ZipFile(ANDROID) as archive:
        return Path(archive.extract("classes.jar", tmp_path_factory.mktemp("android")))


def library() -> Path:
    """What Kotlin's own library has had in it since 1.8, and Debian's Kotlin has beside it."""
    program = shutil.which("kotlinc")
    assert program is not None
    return Path(program).resolve().parent.parent / "lib" / "kotlin-stdlib-jdk7.jar"


@PIXELS
@KOTLIN
def test_kotlin_prepares_images_as_python_does(
    form: str, variant: str, pixels: bool, stubs: Path, android: Path, tmp_path: Path
) -> None:
    folder = bundle(form, tmp_path, pixels=pixels)
    sources = [*kotlin_of(folder, variant), STUBS / "Main.kt"]
    compiled = folder / "compiled.jar"
    # The shipped classes come first: the code must fit them, not our idea of them.
    path = f"{android}:{stubs}:{library()}"
    said = well("kotlinc", *sources, "-cp", path, "-include-runtime", "-d", compiled)
    assert "error:" not in said
    captured = folder / "captured"
    row = folder / "golden" / "01.rgb"
    said = well(
        *("java", f"-Dcaptured={captured}", "-cp", f"{stubs}:{compiled}:{library()}"),
        *("com.example.classifier.MainKt", folder / "labels.txt", row),
    )
    assert "[1, 3, 0, 2]" in said, "of equal logits the lower class comes first"
    tensor = code_of(folder).tensor_of(rgb_of(folder, 1))
    assert captured.read_bytes() == tensor.tobytes()


GIVEN = {
    "classes": {"shape": (1, 4), "classes": 4},
    "yes": {"shape": (1, 1), "classes": 2},
    "labels": {"shape": (1, 4), "classes": 4, "threshold": 0.2, "above": 0.2},
}
"""What a file of each task gives."""


def probabilities_bundle(form: str, kind: str, folder: Path) -> Path:
    """The code of a file that gives probabilities."""
    plain = contract(form, pixels=False)
    output = plain.output.model_copy(update={"gives": "probabilities", **GIVEN[kind]})
    for path, text in snippets(plain.model_copy(update={"output": output}), VERSIONS).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.mark.parametrize("kind", GIVEN)
def test_cpp_of_probabilities_compiles(kind: str, tmp_path: Path) -> None:
    folder = probabilities_bundle("onnx", kind, tmp_path)
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    well("c++", *strict, "-isystem", HEADERS, folder / "cpp" / "golden.cpp")


@pytest.mark.parametrize("kind", GIVEN)
def test_kotlin_of_probabilities_compiles(
    kind: str, stubs: Path, android: Path, tmp_path: Path
) -> None:
    folder = probabilities_bundle("tflite", kind, tmp_path)
    path = f"{android}:{stubs}:{library()}"
    sources = kotlin_of(folder, "litert")
    well("kotlinc", *sources, "-cp", path, "-d", folder / "compiled.jar")
