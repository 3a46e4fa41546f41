"""One preparation of photos in compilers: C++ and Kotlin beside the pipeline, to the bit."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.commands.bundle.snippets import snippets
from pipeline.tasks.images.preparation import Preparation, prepared
from tests.making import HOUR
from tests.making.bundles import VERSIONS, contract_for
from tests.making.photo_sizes import PREPARATIONS, random_photos

if "POCKETNEST_ONNXRUNTIME" not in os.environ:
    pytest.skip("run by `nox -s snippets`, which brings compilers", allow_module_level=True)

EVERY = pytest.mark.parametrize("preparation", PREPARATIONS.values(), ids=PREPARATIONS)
STRICT = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
CPP = """\
#include <cstdio>
#include "photo.hpp"

int main() {
  std::int32_t sides[2];
  while (std::fread(sides, 4, 2, stdin) == 2) {
    std::vector<std::uint8_t> rgb(3 * static_cast<std::size_t>(sides[0]) * sides[1]);
    if (std::fread(rgb.data(), 1, rgb.size(), stdin) != rgb.size()) return 1;
    const auto found = photo::Prepare(rgb, sides[0], sides[1]);
    std::fwrite(found.data(), 1, found.size(), stdout);
  }
}
"""
KOTLIN = """\
package com.example.classifier

import java.io.DataInputStream
import java.io.File

/** Reads photos, height and width before each, and writes what they become. */
fun main(arguments: Array<String>) {
    val input = DataInputStream(File(arguments[0]).inputStream().buffered())
    val output = File(arguments[1]).outputStream().buffered()
    while (input.available() > 0) {
        val height = Integer.reverseBytes(input.readInt())
        val width = Integer.reverseBytes(input.readInt())
        val rgb = ByteArray(3 * height * width)
        input.readFully(rgb)
        output.write(Photo.prepared(width, height) { y, row ->
            for (x in row.indices) {
                val at = 3 * (y * width + x)
                row[x] = 255 shl 24
                for (i in 0..2) row[x] = row[x] or (rgb[at + i].toInt() and 255 shl 16 - 8 * i)
            }
        })
    }
    output.close()
}
"""


def well(*command: str | Path, given: bytes = b"") -> bytes:
    """What a command prints that must end well."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, input=given, capture_output=True, timeout=HOUR)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return list(random_photos(500))


def fed(photos: list[np.ndarray]) -> bytes:
    return b"".join(struct.pack("<ii", *photo.shape[:2]) + photo.tobytes() for photo in photos)


def assert_prepared(found: bytes, photos: list[np.ndarray], preparation: Preparation) -> None:
    shape = preparation.shape
    rows = slice(preparation.margin[0], preparation.margin[0] + shape.height)
    columns = slice(preparation.margin[1], preparation.margin[1] + shape.width)
    images = np.frombuffer(found, np.uint8).reshape(
        len(photos), shape.height, shape.width, shape.channels
    )
    for image, photo in zip(images, photos, strict=True):
        expected = prepared(Image.fromarray(photo), preparation)[:, rows, columns]
        assert np.array_equal(image.transpose(2, 0, 1), expected), photo.shape


@EVERY
@pytest.mark.parametrize("fast", [(), ("-O3", "-march=native", "-ffp-contract=off")])
def test_cpp_prepares_photos_as_the_pipeline_does(
    preparation: Preparation, fast: tuple[str, ...], photos: list[np.ndarray], tmp_path: Path
) -> None:
    code = snippets(contract_for(preparation), VERSIONS)["cpp/photo.hpp"]
    (tmp_path / "photo.hpp").write_text(code)
    (tmp_path / "main.cpp").write_text(CPP)
    well("c++", *STRICT, *fast, tmp_path / "main.cpp", "-o", tmp_path / "prepare")
    assert_prepared(well(tmp_path / "prepare", given=fed(photos)), photos, preparation)


@EVERY
def test_kotlin_prepares_photos_as_the_pipeline_does(
    preparation: Preparation, photos: list[np.ndarray], tmp_path: Path
) -> None:
    if shutil.which("kotlinc") is None:
        pytest.skip("no kotlinc")
    code = snippets(contract_for(preparation), VERSIONS)["kotlin/src/main/kotlin/Photo.kt"]
    (tmp_path / "Photo.kt").write_text(code)
    (tmp_path / "Main.kt").write_text(KOTLIN)
    (tmp_path / "photos").write_bytes(fed(photos))
    compiled = tmp_path / "compiled.jar"
    well("kotlinc", tmp_path / "Photo.kt", tmp_path / "Main.kt", "-include-runtime", "-d", compiled)
    program = ("java", "-cp", compiled, "com.example.classifier.MainKt")
    well(*program, tmp_path / "photos", tmp_path / "found")
    assert_prepared((tmp_path / "found").read_bytes(), photos, preparation)
