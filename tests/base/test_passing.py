"""What passes is told from what is wrong: only that may be thrown away."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError

from pipeline.base.passing import is_passing
from pipeline.base.safe_files import content_of


def of(number: int) -> OSError:
    return OSError(number, os.strerror(number), "state.pt")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        *(of(getattr(errno, name)) for name in ("EIO", "ENOMEM", "EMFILE", "ENFILE", "ESTALE")),
        *(of(getattr(errno, name)) for name in ("EACCES", "EPERM", "ETIMEDOUT", "EINTR")),
    ],
)
def test_what_passes(error: Exception) -> None:
    assert is_passing(error)
    wrapped = ValueError("cannot be read")
    wrapped.__cause__ = error
    assert is_passing(wrapped)


def test_torchs_own_words_for_no_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_passing(caught.value)


def test_what_is_wrong_stays_wrong(tmp_path: Path) -> None:
    """As the libraries that read it say so."""
    (tmp_path / "file").write_bytes(b"{")
    reads = {
        "no file": lambda: content_of(tmp_path, 1),
        "missing": lambda: content_of(tmp_path / "missing", 1),
        "too large": lambda: content_of(tmp_path / "file", 0),
        "no image": lambda: Image.open(tmp_path / "file"),
        "no JSON": lambda: json.loads("{"),
        "no archive": lambda: zipfile.ZipFile(tmp_path / "file"),
        "no state": lambda: torch.load(tmp_path / "file", weights_only=True),
    }
    for what, read in reads.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011  of every library's own kind
            read()
        assert not is_passing(caught.value), what
        assert what != "no image" or isinstance(caught.value, UnidentifiedImageError)
