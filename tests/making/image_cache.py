"""Loading images through a cache, and what it holds."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images import stored
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from tests.making.photos import (
    SIZE,
)


def load(folders: ImageFolderData, cache: Path | None) -> Dataset:
    """With every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_dataset(folders, square(SIZE), cache=cache)


def refuse(*_: object) -> list[bytes]:
    raise AssertionError("must not read")


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on, as they come."""
    seen: list[str] = []
    read = stored.bytes_of

    def noted(file: Path) -> bytes:
        seen.append(file.name)
        return read(file)

    monkeypatch.setattr(stored, "bytes_of", noted)
    return seen


def kept(cache: Path) -> list[Path]:
    """The results in a cache; its locks have names that begin with a dot."""
    return [place for place in cache.glob("*") if not place.name.startswith(".")]


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [path for place in kept(directory) for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
