"""How many bytes an update takes: what makes a new file of the old one that a device has.

    patches(Path("old/model.tflite"), Path("new/model.tflite"))  # {"bsdiff": 1_203_456, ...}

Every patch is applied before it is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from pipeline.base.errors import InputError, MismatchError
from pipeline.measure.downloads import files_of

Patcher = Literal["bsdiff", "zstd"]
PATCHERS: tuple[Patcher, ...] = get_args(Patcher)
MOST_BYTES = 128 << 20
"""Of a file: bsdiff sorts the old one's suffixes in 17 times its size (2.3 GB)."""
_TIMES = 17
_LEVEL = 19
_LEAST_WINDOW_LOG = 10


def patches(old: Path, new: Path) -> dict[Patcher, int]:
    """Bytes of an update of a file by each patcher.

    A package is patched file by file: files that are the same are not sent, and files that the
    old package lacks are sent compressed.

    Raises:
        InputError: a file is larger than `MOST_BYTES`.
        MismatchError: a patch does not make the new file of the old one.
    """
    before, after = _parts(old), _parts(new)
    for file in (*before.values(), *after.values()):
        _refuse_large(file)
    found = dict.fromkeys(PATCHERS, 0)
    for name, file in after.items():
        source = before[name].read_bytes() if name in before else b""
        wanted = file.read_bytes()
        if name in before and source == wanted:
            continue
        for patcher in PATCHERS:
            patch, patched = _PATCHERS[patcher](source, wanted)
            if patched != wanted:
                raise MismatchError(
                    f"{file}: the {patcher} patch of {len(patch)} bytes does not make it of "
                    f"{before.get(name, 'nothing')}"
                )
            found[patcher] += len(patch)
    return found


def _parts(path: Path) -> dict[str, Path]:
    """Files by their names in the package; the file itself by none."""
    if path.is_file():
        return {"": path}
    return {file.relative_to(path).as_posix(): file for file in files_of(path)}


def _refuse_large(file: Path) -> None:
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise InputError(
            f"{file}: has {size / 1e6:.0f} MB; patches are made of files of at most "
            f"{MOST_BYTES / 1e6:.0f} MB, since bsdiff takes {_TIMES} times that in memory; compare "
            "without --delta"
        )


def _bsdiff(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """A patch in Colin Percival's format BSDIFF40, and what it makes of the old content."""
    import bsdiff4

    patch = bsdiff4.diff(old, new)
    return patch, bsdiff4.patch(old, patch)


def _zstd(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """As `zstd -19 --patch-from`: a frame whose dictionary is the old content, and what it makes.

    The window spans both, so that all of the old content stays in reach until the end.
    """
    import zstandard

    window = max(_LEAST_WINDOW_LOG, (len(old) + len(new)).bit_length())
    prefix = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    settings = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, source_size=len(new), dict_size=len(old), window_log=window, enable_ldm=True
    )
    packer = zstandard.ZstdCompressor(dict_data=prefix, compression_params=settings)
    patch = packer.compress(new)
    reader = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=1 << window)
    return patch, reader.decompress(patch)


_PATCHERS: dict[Patcher, Callable[[bytes, bytes], tuple[bytes, bytes]]] = {
    "bsdiff": _bsdiff,
    "zstd": _zstd,
}
