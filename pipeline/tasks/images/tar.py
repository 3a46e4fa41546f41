"""Where the members of a tar archive lie: its headers alone are read, and nothing is unpacked.

An archive may come from anywhere, so whatever its headers say ends in members or in a `TarError`:
sizes are compared with that of the archive, an extended header is read up to a megabyte, links
and devices are told and never followed. Python's tarfile gives the same members of sound archives
(a test compares them), but reads headers of any size whole, keeps an object for every member, and
takes three times as long.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MOST_EXTENDED = 2**20
"""Bytes of an extended header: a name, and what else pax has of a member."""
_AFTER_THE_END = 2**16
"""Bytes behind the end of an archive that are looked at; writers fill a record of 10 KiB."""
_FILES, _OLD_FILE = (b"0", b"\0", b"7"), b"\0"
_NO_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes: whatever size they say, none of it follows."""
_FOLDER, _SPARSE, _LONG_NAME, _LONG_LINK, _PAX, _OLD_PAX, _GLOBAL = (*b"5SLKxXg",)
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}


class TarError(Exception):
    """An archive is not what it should be; the message says where and what to do, not its name."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: as the archive has it; it may be any path at all.
        offset: where its content begins, in bytes from the start of the archive.
        size: of its content in bytes.
        is_file: whether it is a file, and no link, device or pipe. Folders are no members.
    """

    name: bytes
    offset: int
    size: int
    is_file: bool


Read = Callable[[int, int], bytes]
"""So many bytes from an offset, fewer at the end."""


def reader(number: int) -> Read:
    """Of an open file."""
    return lambda size, offset: os.pread(number, size, offset)


def members(read: Read, size: int) -> Iterator[Member]:
    """The members of an archive of `size` bytes, in order.

    Raises:
        TarError: a header is damaged, or the archive is not whole.
        OSError: it cannot be read.
    """
    place, name, records = 0, b"", dict[bytes, bytes]()
    while (header := _header(read, place, size)) is not None:
        kind, content, length = header[156], place + BLOCK, _number(header, place)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _OLD_PAX, _GLOBAL):
            place = _next(content, length, place, size)
            text = _extended(read, content, length)
            if kind == _LONG_NAME:
                name = text.partition(b"\0")[0]
            elif kind in (_PAX, _OLD_PAX):
                records = _records(text, content)
            continue
        name = records.get(b"path", name) or _name(header)
        if b"size" in records:
            length = _decimal(records[b"size"], place)
        if kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in records):
            raise TarError(f"{_shown(name)} at byte {place} is sparse; write it without --sparse")
        folder = kind == _FOLDER or (kind == _OLD_FILE[0] and name.endswith(b"/"))
        if folder or header[156:157] in _NO_CONTENT:
            length = 0
        place = _next(content, length, place, size, name)
        if not folder:
            yield Member(name, content, length, header[156:157] in _FILES)
        name, records = b"", {}
    if name or records:
        raise TarError("ends behind an extended header; copy it again")


def _header(read: Read, place: int, size: int) -> bytes | None:
    """The header at a place; None at the end of the archive."""
    header = read(BLOCK, place)
    if len(header) < BLOCK:
        if place == 0:
            raise TarError(f"holds {size} bytes and is no tar archive")
        raise TarError(
            f"ends at byte {size} without the block of zeros that ends an archive: a part is "
            "missing; copy or write it again"
        )
    if header == _ZEROS:
        if read(_AFTER_THE_END, place).strip(b"\0"):
            raise TarError(
                f"goes on after its end at byte {place}: several archives in one; keep each as a "
                "file of its own"
            )
        return None
    field = header[148:156]
    if _octal(field) != sum(header) - sum(field) + 8 * ord(" "):
        if place:
            raise TarError(f"the header at byte {place} is damaged; copy or write it again")
        for begins, kind in _COMPRESSED.items():
            if header.startswith(begins):
                raise TarError(
                    f"is compressed ({kind}), so that no member can be read by itself; decompress "
                    "it"
                )
        raise TarError("is no tar archive")
    return header


def _number(header: bytes, place: int) -> int:
    """The size that a header says."""
    field = header[124:136]
    if field[0] == 0x80:  # binary, for what octal digits do not hold
        return int.from_bytes(field[1:], "big")
    found = _octal(field)
    if found is None:
        raise TarError(
            f"the header at byte {place} says no size ({field!r}); copy or write it again"
        )
    return found


def _octal(field: bytes) -> int | None:
    text = field.partition(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        return None
    return int(text or b"0", 8)


def _decimal(text: bytes, place: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(
            f"the extended header before byte {place} says no size ({text[:20]!r}); copy or write "
            "it again"
        )
    return int(text)


def _next(content: int, length: int, place: int, size: int, name: bytes = b"") -> int:
    """Where the next header is."""
    if content + length > size:
        what = _shown(name) if name else "an extended header"
        raise TarError(
            f"{what} at byte {place} has {length} bytes, but the archive ends at byte {size}: a "
            "part is missing; copy or write it again"
        )
    return content + -(-length // BLOCK) * BLOCK


def _extended(read: Read, content: int, length: int) -> bytes:
    if length > _MOST_EXTENDED:
        raise TarError(
            f"the extended header before byte {content} has {length} bytes; at most "
            f"{_MOST_EXTENDED} are read; write it with plain names"
        )
    return read(length, content)


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    # GNU's own form has times in the place of the prefix, and another magic.
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(text: bytes, content: int) -> dict[bytes, bytes]:
    """What a pax header says: lines of their length, a key and a value."""
    found, place = dict[bytes, bytes](), 0
    while place < len(text) and text[place]:
        blank = text.find(b" ", place, place + 21)
        digits = text[place : max(blank, place)]
        end = place + int(digits) if digits.isdigit() else 0
        key, equals, value = text[blank + 1 : end - 1].partition(b"=")
        if not equals or text[end - 1 : end] != b"\n" or end > len(text):
            raise TarError(
                f"the extended header at byte {content} is damaged; copy or write it again"
            )
        found[key] = value
        place = end
    return found


def _shown(name: bytes) -> str:
    return repr(os.fsdecode(name[-200:]))
