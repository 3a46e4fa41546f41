"""Damage, drawn from a seed: bytes, JSON trees, files and folders."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LARGE = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = (
    *("", " ", "x", "..", ".", "/", "../x", "../../canary/file", "/etc/passwd", "~", "~root/x"),
    *("a/b", "a\\b", "-", "--help", "con", "%s%n", "{0}", "$HOME", "`id`", "a" * 300, "a" * 5000),
    *("\0", "a\0b", "\x1b[31mred", "\r\n", "a\nb", "\t", "\x7f", "\x85", "\u2028", "\ufeff"),
    *(
        "\u202e",
        "\uff41",
        "é",
        "e\u0301",
        "😀",
        "0",
        "-1",
        "1e999",
        "nan",
        "null",
        "true",
        "[]",
        "{}",
    ),
)
"""Texts that have broken programs: paths, terminals, formats, numbers that are none."""


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with one to eight small changes, never the same as before."""
    for _ in range(20):
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            rng.choice(_CHANGES)(data, rng)
        if data != content:
            return bytes(data)
    return content + b"\0"


def _place(data: bytearray, rng: random.Random) -> int:
    """Somewhere, half of the times near an end: that is where headers and indices are."""
    if not data:
        return 0
    near = min(len(data), rng.choice((16, 64, 256, 4096)))
    return rng.choice(
        (rng.randrange(len(data)), rng.randrange(near), len(data) - 1 - rng.randrange(near))
    )


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((2, 4, 4, 8))
    value = rng.choice(_NUMBERS + _LARGE) & (256**size - 1)
    at = _place(data, rng) // size * size
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "little", "big")))


def _nudge(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng) // 4 * 4
    value = int.from_bytes(data[at : at + 4], "little") + rng.choice((-8, -4, -1, 1, 4, 8, 1024))
    data[at : at + 4] = (value % 2**32).to_bytes(4, "little")


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 200, 4096))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 200))] * rng.choice((1, 2, 50))


def _noise(data: bytearray, rng: random.Random) -> None:
    at, size = _place(data, rng), rng.choice((1, 4, 16, 64))
    data[at : at + size] = rng.randbytes(size)


def _clear(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    size = min(rng.choice((4, 16, 256, 4096)), len(data) - at)
    data[at : at + size] = bytes(size)


def _move(data: bytearray, rng: random.Random) -> None:
    size, source, target = rng.choice((4, 8, 16, 64)), _place(data, rng), _place(data, rng)
    data[target : target + size] = data[source : source + size]


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip, _set, _set, _number, _number, _nudge, _nudge),
    *(_cut, _remove, _repeat, _noise, _clear, _move),
)


def rubbish(rng: random.Random) -> bytes:
    """A file that never was what it should be."""
    whole: bytes = rng.choice(
        (
            b"",
            b"\x00",
            b"\n",
            b"{}",
            b"[]",
            b"null",
            b"PK\x05\x06" + bytes(18),
            b"\xff" * 300,
            b"<html>not found</html>",
            b"[" * 100000,
            b'{"a":' * 50000,
            b"\x00" * 2**20,
            rng.randbytes(rng.randrange(1, 2000)),
            b"9" * 5000,
            b'"\\ud800"',
            b"\x80\x02.",
        )
    )
    return whole


def hostile_value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value: of any type, any size."""
    scalars: tuple[Any, ...] = (
        *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**400), 0.5, 1e308),
        *(float("nan"), float("inf"), rng.choice(TEXTS), rng.choice(TEXTS), rng.random()),
    )
    if depth < 2 and rng.random() < 0.2:
        return [hostile_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if depth < 2 and rng.random() < 0.2:
        return {rng.choice(TEXTS): hostile_value(rng, depth + 1) for _ in range(rng.randrange(3))}
    return rng.choice(scalars)


def changed_tree(tree: Any, rng: random.Random) -> Any:
    """A JSON tree with one value somewhere in it changed, added, removed or doubled."""
    tree = json.loads(json.dumps(tree))
    places = list(_containers(tree))
    if not places:
        return hostile_value(rng)
    at = rng.choice(places)
    keys = list(at) if isinstance(at, dict) else list(range(len(at)))
    does = rng.choice(("change", "change", "change", "remove", "add", "swap"))
    if not keys or does == "add":
        if isinstance(at, dict):
            at[rng.choice(TEXTS)] = hostile_value(rng)
        else:
            at.append(hostile_value(rng))
    elif does == "change":
        at[rng.choice(keys)] = hostile_value(rng)
    elif does == "remove":
        del at[rng.choice(keys)]
    else:
        one, two = rng.choice(keys), rng.choice(keys)
        at[one], at[two] = at[two], at[one]
    return tree


def _containers(tree: Any) -> Any:
    if isinstance(tree, dict | list):
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(inner)


def damaged_json(content: bytes, rng: random.Random) -> bytes:
    """The text of a JSON file, changed as a tree or as bytes."""
    if rng.random() < 0.3:
        return damaged(content, rng)
    if rng.random() < 0.1:
        return rubbish(rng)
    return json.dumps(changed_tree(json.loads(content), rng)).encode()


def replace_by_oddity(path: Path, canary: Path, rng: random.Random) -> str:
    """Put something else in the place of a file or folder; returns what."""
    what = rng.choice(
        (
            "nothing",
            "folder",
            "link to a file",
            "link to a folder",
            "link to nothing",
            "link to itself",
            "pipe",
            "empty file",
            "link to a device",
            "large file",
            "file",
            "moved out and linked",
        )
    )
    moved = canary / "moved"
    if what == "moved out and linked" and path.exists():
        path.rename(moved)
        path.symlink_to(moved)
        return what
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    links = {
        "link to a file": canary / "file",
        "link to a folder": canary / "folder",
        "link to nothing": canary / "nothing",
        "moved out and linked": canary / "nothing",
        "link to itself": path,
        "link to a device": Path("/dev/zero"),
    }
    if what in links:
        path.symlink_to(links[what])
    elif what == "folder":
        path.mkdir()
        (path / "file").write_text("x")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "large file":
        with path.open("wb") as file:
            file.truncate(6 * 2**30)  # takes no room on the disk
    elif what == "empty file":
        path.touch()
    elif what == "file":
        path.write_bytes(rubbish(rng))
    return what


def spoil(file: Path, rng: random.Random, *, wholly: float) -> None:
    """Write a file that is there anew: rubbish, with the probability `wholly`, or damaged."""
    content = file.read_bytes()
    if rng.random() < wholly:
        file.write_bytes(rubbish(rng))
    elif file.suffix == ".json":
        file.write_bytes(damaged_json(content, rng))
    else:
        file.write_bytes(damaged(content, rng))
