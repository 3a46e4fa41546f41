"""Files of torch: zip files, and those before torch 1.6. Both are a pickle and its storages."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pipeline.networks.checkpoint_objects import Storage, StoredTensor
from pipeline.networks.checkpoint_pickles import Stretch, read_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What files that are no zip begin with."""

_ZIP = b"PK\x03\x04"
"""What zip files and every member in them begin with."""

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


def unpacked(file: BinaryIO) -> tuple[Any, Storages | None]:
    """What a file of torch holds, and where its tensors have their numbers.

    Raises:
        ValueError and others: it is none, or is damaged.
    """
    start = file.read(264)
    if start.startswith(_ZIP):
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
        if not header.startswith(_ZIP):
            raise ValueError(f"{name} is not where the zip file has it")
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
