"""How many bytes are sent: what real compressors make of files and packages, and undo."""

from __future__ import annotations

import io
import lzma
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from pipeline.measure import downloads as measured
from pipeline.measure.downloads import COMPRESSORS, download_bytes, downloads


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "model.mlpackage"
    (folder / "Data" / "weights").mkdir(parents=True)
    (folder / "Manifest.json").write_bytes(b"{}")
    (folder / "Data" / "weights" / "weight.bin").write_bytes(b"\0" * 100_000)
    return folder


def codes(count: int = 200_000) -> bytes:
    """Weights as int8 files hold them: few large ones."""
    draw = np.random.default_rng(0).laplace(0, 12, count)
    return np.clip(draw.round(), -127, 127).astype(np.int8).tobytes()


def by_name(path: Path) -> dict[str, int]:
    return {one.compressor: one.bytes for one in downloads(path)}


def test_what_compresses_is_sent_in_little_and_noise_is_not(package: Path, tmp_path: Path) -> None:
    zeros = package / "Data" / "weights" / "weight.bin"
    assert max(by_name(zeros).values()) < 1000
    assert max(by_name(package).values()) < 1500
    noise = tmp_path / "noise.bin"
    noise.write_bytes(np.random.default_rng(0).bytes(100_000))
    for size in by_name(noise).values():
        assert 100_000 <= size < 101_000


def test_the_first_is_the_size_of_a_zip_archive(package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for file in sorted(p for p in package.rglob("*") if p.is_file()):
            packed.write(file, file.relative_to(tmp_path))
    first, *_ = downloads(package)
    assert (first.compressor, first.bytes) == ("deflate", archive.stat().st_size)
    assert download_bytes(package) == first.bytes


def test_the_others_are_the_sizes_of_what_decompresses_again(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(codes())
    found = by_name(file)
    packed = lzma.compress(file.read_bytes(), preset=9)
    small = measured._xz(file.read_bytes())
    assert len(small) == len(packed), "a smaller window costs nothing"
    assert lzma.decompress(small) == file.read_bytes()
    assert tuple(found) == ("deflate", "zstd")
    frame = measured.zstd(file.read_bytes())
    assert found["zstd"] == len(frame)
    assert zstandard.ZstdDecompressor().decompress(frame) == file.read_bytes()
    assert zstandard.get_frame_parameters(frame).window_size <= 8 << 20


def test_a_package_is_packed_the_same_everywhere(package: Path, tmp_path: Path) -> None:
    (package / "Data" / "weights" / "weight.bin").write_bytes(codes())
    copy = tmp_path / "elsewhere" / package.name
    shutil.copytree(package, copy)
    for number, path in enumerate(sorted(copy.rglob("*"))):
        os.utime(path, (1e9 + number, 1e9 + number))
        path.chmod(0o755)
    assert downloads(copy) == downloads(package)
    assert measured._tar(copy) == measured._tar(package)
    with tarfile.open(fileobj=io.BytesIO(measured._tar(package))) as archive:
        held = {one.name: archive.extractfile(one).read() for one in archive}
    weights = "model.mlpackage/Data/weights/weight.bin"
    assert held == {weights: codes(), "model.mlpackage/Manifest.json": b"{}"}


def test_every_compressor_is_asked(package: Path) -> None:
    assert tuple(by_name(package)) == COMPRESSORS
