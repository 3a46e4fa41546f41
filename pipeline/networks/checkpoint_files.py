"""What lies in files of checkpoints, whoever wrote them: zip and older files of torch, safetensors.

with opened(path) as file:
    file.content                                # dicts, lists, numbers, text, Inert, tensors
    file.tensor(file.content["conv1.weight"])   # on the CPU

A file is data: no code in it ever runs (`checkpoint_pickles`). Tensors are read one by one, so that
an optimizer's state costs nothing.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.passing import is_passing
from pipeline.base.safe_files import open_file
from pipeline.networks.checkpoint_objects import Storage, StoredTensor
from pipeline.networks.checkpoint_pickles import Stretch, read_pickle

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Of checkpoints; `.pth.tar` is one of them."""

CONFIG = "config.json"
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a folder of the Hugging Face Hub."""

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What files that are no zip begin with."""

_KINDS: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


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
            content, storages = _unpacked(file)
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


@dataclass
class Storages:
    """The numbers in an open file.

    Attributes:
        file: that is open.
        place: gives the first byte and the number of bytes of a storage by its key.
        read: storages so far, by key and type.
    """

    file: BinaryIO
    place: Callable[[str], tuple[int, int]]
    read: dict[tuple[str, torch.dtype], Tensor] = field(default_factory=dict)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Raises ValueError or RuntimeError where the file does not have its numbers."""
        storage = stored.storage
        dtype = _dtype(storage.kind if stored.dtype is None else stored.dtype)
        if (storage.key, dtype) not in self.read:
            self.read[storage.key, dtype] = self._numbers(storage, dtype)
        numbers = self.read[storage.key, dtype]
        return numbers.as_strided(stored.size, stored.stride, storage.begin + stored.offset)

    def _numbers(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        begin, size = self.place(storage.key)
        if size != storage.count * _dtype(storage.kind).itemsize or size % dtype.itemsize:
            raise ValueError(f"storage {storage.key[:20]} has {size} bytes, which is not its size")
        self.file.seek(begin)
        content = bytearray(self.file.read(size))
        if len(content) != size:
            raise EOFError("ends too early")
        return torch.frombuffer(content, dtype=dtype) if size else torch.empty(0, dtype=dtype)


def _dtype(name: str) -> torch.dtype:
    """Of a storage's type or of torch's own name for a type of numbers."""
    found = _KINDS.get(name) or vars(torch).get(name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise ValueError(f"numbers of type {name[:40]} are not read")
    return found


def _unpacked(file: BinaryIO) -> tuple[Any, Storages | None]:
    start = file.read(264)
    if start.startswith(b"PK\x03\x04"):
        return _of_zip(file)
    if start[257:262] == b"ustar":
        raise ValueError("an archive of files; unpack it and name the checkpoint in it")
    return _of_pickles(file)


def _of_zip(file: BinaryIO) -> tuple[Any, Storages]:
    """What a zip file of torch holds: a pickle, and a member for each storage."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = {one.filename: one for one in archive.infolist()}
        root = next(iter(members), "").partition("/")[0]
    if f"{root}/constants.pkl" in members:
        raise ValueError("TorchScript, a program and no checkpoint")
    if f"{root}/data.pkl" not in members:
        raise ValueError("a zip file without data.pkl")
    # Members that lie over each other would be read into more memory than the file has bytes.
    if sum(one.file_size for one in members.values()) > size:
        raise ValueError("members of the zip file are larger than the file")

    def place(name: str) -> tuple[int, int]:
        member = members[f"{root}/{name}"]
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its members are compressed")
        file.seek(member.header_offset)
        header = file.read(30)
        lengths = (int.from_bytes(header[n : n + 2], "little") for n in (26, 28))
        return member.header_offset + len(header) + sum(lengths), member.file_size

    if f"{root}/byteorder" in members:
        begin, length = place("byteorder")
        file.seek(begin)
        _refuse_big_endian(file.read(length) == b"big")
    begin, length = place("data.pkl")
    content = read_pickle(Stretch(file, begin, begin + length))
    return content, Storages(file, lambda key: place(f"data/{key}"))


def _of_pickles(file: BinaryIO) -> tuple[Any, Storages | None]:
    """What a file of torch before 1.6 holds: five pickles, and then the storages in turn."""
    size = os.fstat(file.fileno()).st_size
    stretch = Stretch(file, 0, size)
    magic = read_pickle(stretch)
    if magic != _MAGIC:
        return magic, None  # a bare pickle, such as those of numpy arrays
    named: dict[str, Storage] = {}
    protocol, system, content, keys = (read_pickle(stretch, named) for _ in range(4))
    if protocol != _PROTOCOL:
        raise ValueError(f"protocol {str(protocol)[:20]}")
    _refuse_big_endian(isinstance(system, dict) and system.get("little_endian") is False)
    places: dict[str, tuple[int, int]] = {}
    for key in map(str, keys):
        count = int.from_bytes(file.read(8), "little")
        length = count * _dtype(named[key].kind).itemsize
        places[key] = (file.tell(), length)
        if file.tell() + length > size:
            raise EOFError("ends too early")
        file.seek(length, os.SEEK_CUR)
    return content, Storages(file, places.__getitem__)


def _refuse_big_endian(big: object) -> None:
    if big:
        raise ValueError("was written on a big-endian machine")
