"""How many bytes an app downloads for a file, by the compressors of stores and servers.

    downloads(Path("model.tflite"))  # deflate and zstd, each with its bytes

Each is measured with the compressor itself. Files and packages are packed the same way on every
machine: no times, owners or modes of files go in.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from pipeline.base.record import Positive, Record

Compressor = Literal["deflate", "lzma", "zstd"]
COMPRESSORS: tuple[Compressor, ...] = get_args(Compressor)
_DEFLATE, _XZ, _ZSTD = 9, 9, 12
_XZ_WINDOW, _LEAST_WINDOW = 64 << 20, 4 << 10
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip archive can hold."""


class Download(Record):
    """Bytes of a file as one compressor sends it.

    Attributes:
        compressor: deflate: a zip archive, level 9. lzma: xz, preset 9. zstd: level 12, within the
            window of 8 MiB that HTTP's content coding `zstd` may have (RFC 9659).
        bytes: sent. Of a package: of a zip archive of its files, or of a tar archive compressed.
    """

    compressor: Compressor
    bytes: Positive


def downloads(path: Path) -> tuple[Download, ...]:
    """What compressors make of a file or package; deflate, which stores use, first.

    LZMA takes seconds, and is what Apple's Compression framework has: it is for packages alone.
    """
    if path.is_file():
        sizes = {"deflate": download_bytes(path), "zstd": len(zstd(path.read_bytes()))}
    else:
        whole = _tar(path)
        sizes = {
            "deflate": download_bytes(path),
            "lzma": len(_xz(whole)),
            "zstd": len(zstd(whole)),
        }
    found = [name for name in COMPRESSORS if name in sizes]
    return tuple(Download(compressor=name, bytes=sizes[name]) for name in found)


def download_bytes(path: Path) -> int:
    """Bytes of a file or package in a zip archive (deflate), as an app store would send it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=_DEFLATE) as archive:
        for file in files_of(path):
            member = zipfile.ZipInfo(file.relative_to(path.parent).as_posix(), _LONG_AGO)
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, file.read_bytes(), compresslevel=_DEFLATE)
    return len(packed.getvalue())


def zstd(content: bytes) -> bytes:
    """One frame of level 12.

    Of int8 weights level 19 makes 0.04 % less, in forty times the time.
    """
    import zstandard

    return zstandard.ZstdCompressor(level=_ZSTD).compress(content)


def files_of(path: Path) -> Sequence[Path]:
    """The file itself, or every file of a package, in a fixed order."""
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _xz(content: bytes) -> bytes:
    # Preset 9 asks for tables of its whole window, 674 MB; what a window has beyond the content
    # never holds anything, so that the bytes are the same without it.
    window = max(_LEAST_WINDOW, min(_XZ_WINDOW, len(content)))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": _XZ, "dict_size": window}]
    return lzma.compress(content, format=lzma.FORMAT_XZ, filters=filters)


def _tar(folder: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for file in files_of(folder):
            content = file.read_bytes()
            member = tarfile.TarInfo(file.relative_to(folder.parent).as_posix())
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
