"""What lies in files of checkpoints, whoever wrote them: zip and older files of torch, safetensors.

with opened(path) as file:
    file.content                                # dicts, lists, numbers, text, Inert, tensors
    file.tensor(file.content["conv1.weight"])   # on the CPU

A file is data: no code in it ever runs (`checkpoint_pickles`). Tensors are read one by one, so that
an optimizer's state costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.passing import is_passing
from pipeline.base.safe_files import open_file
from pipeline.networks.checkpoint_formats import Storages, unpacked
from pipeline.networks.checkpoint_objects import StoredTensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Of checkpoints; `.pth.tar` is one of them."""

CONFIG = "config.json"
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a folder of the Hugging Face Hub."""


def file_in(path: Path) -> Path:
    """The file of the weights: `path` itself, or the one in a folder of the Hugging Face Hub.

    Raises:
        InputError: there is no such file or folder, or it holds no weights.
    """
    if path.is_dir() and path.suffix not in SUFFIXES:
        for name in _IN_FOLDERS:
            if (path / name).is_file():
                return path / name
        raise InputError(
            f"{path}: is a folder without {' or '.join(_IN_FOLDERS)}; set model.checkpoint to a "
            "file of weights (weights in several parts are not read: save them as one)"
        )
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path}: a checkpoint ends in {', '.join(SUFFIXES)}; got {path.suffix or 'no suffix'}"
        )
    if not path.is_file():
        kind = "is not a file" if path.exists() else "no such file"
        raise InputError(f"{path}: {kind}; set model.checkpoint to a checkpoint or remove it")
    return path


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that decide what is read of a checkpoint.

    Raises:
        InputError: as `file_in`.
    """
    config = path / CONFIG
    return (file_in(path), config) if config.is_file() else (file_in(path),)


@dataclass
class OpenFile:
    """A file that is being read.

    Attributes:
        path: of the file.
        content: of dicts, lists, numbers, text and objects; tensors are a `Tensor` or, where they
            are still in the file, a `StoredTensor`.
        storages: of a pickled file, where its tensors have their numbers.
    """

    path: Path
    content: Any
    storages: Storages | None = None

    def tensor(self, value: Tensor | StoredTensor) -> Tensor:
        """A tensor of the content, on the CPU; those that share numbers in the file share them.

        Raises:
            InputError: what it says of itself does not fit what the file has.
        """
        if isinstance(value, Tensor):
            return value.detach()
        assert self.storages is not None
        with _telling(self.path):
            return self.storages.tensor(value)


@contextmanager
def opened(path: Path) -> Iterator[OpenFile]:
    """What a file holds, while it is open.

    Raises:
        InputError: in one line, if the file cannot be read, or is no checkpoint.
    """
    if path.suffix == ".safetensors":
        with _telling(path):
            tensors = safetensors.torch.load_file(path, device="cpu")
        yield OpenFile(path, tensors)
        return
    with _telling(path):
        file = open_file(path)
    with file:
        with _telling(path):
            content, storages = unpacked(file)
        yield OpenFile(path, content, storages)


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Make one line of whatever a damaged byte leads to: OSError, KeyError, RecursionError, ..."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    words = " ".join(str(error).split())[:160] or type(error).__name__
    if is_passing(error):
        return f"cannot be read now ({words}); the file may be whole, so try again"
    return f"cannot be read; it is truncated, damaged or of another format ({words})"
