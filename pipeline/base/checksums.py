"""What a finished directory holds, hash by hash, so that damage is found before it is used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.base.passing import is_passing
from pipeline.base.profile import span
from pipeline.base.safe_files import content_of, open_file

MANIFEST = "SHA256SUMS"
"""Name of the list, in the form that `sha256sum --check` reads."""

_BLOCK = 2**20
_MOST_BYTES = 64 * 2**20
"""Of a manifest."""


@span("hash", "what was made")
def seal(directory: Path, but: Collection[str] = ()) -> None:
    """List every file of `directory` with its SHA-256, and flush them all to the disk.

    Args:
        directory: to be sealed.
        but: names of files that are not listed, since they have checksums of their own.

    Raises:
        OSError: a file could not be read or written.
    """
    files = [(name, file) for name, file in sorted(_files(directory)) if name not in but]
    lines = [f"{hash_of(file)}  {name}\n" for name, file in files]
    (directory / MANIFEST).write_text("".join(lines), encoding="utf-8")
    for path in (*directory.rglob("*"), directory):
        flush(path)


@span("hash", "what is kept")
def damage(directory: Path, *, more_allowed: bool = False) -> str | None:
    """What differs in `directory` from what was sealed; None where nothing does.

    Args:
        directory: that was sealed.
        more_allowed: files that were added since are no damage.

    Raises:
        OSError: a file cannot be read now; nothing is known of what it holds.
    """
    try:
        text = content_of(directory / MANIFEST, _MOST_BYTES).decode("utf-8")
        lines = text.removesuffix("\n").split("\n") if text else []
        expected = dict(map(_entry, lines))
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError) as error:
        if is_passing(error):
            raise
        return f"{MANIFEST} cannot be read ({error})"
    present = dict(_files(directory))
    if missing := sorted(expected.keys() - present.keys()):
        return f"{missing[0]} is missing"
    if (more := sorted(present.keys() - expected.keys())) and not more_allowed:
        return f"{more[0]} was added"
    present = {name: file for name, file in present.items() if name in expected}
    # Hashing leaves the interpreter free, so files are hashed side by side.
    with ThreadPoolExecutor() as pool:
        found = pool.map(_hash_or_error, present.values())
        for name, value in zip(present, found, strict=True):
            if value != expected[name]:
                return f"{name} is not what was written"
    return None


def listed(directory: Path) -> tuple[str, ...]:
    """Names of the files that were sealed in a directory.

    Raises:
        OSError: the list cannot be read.
        ValueError: it is none.
    """
    text = content_of(directory / MANIFEST, _MOST_BYTES).decode("utf-8")
    return tuple(_entry(line)[0] for line in text.splitlines())


def hash_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open_file(file) as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a directory."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _hash_or_error(file: Path) -> str:
    try:
        return hash_of(file)
    except OSError as error:
        if is_passing(error):
            raise
        return str(error)


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every file but the manifest, by its path in `directory`; links are not followed."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        if not path.is_dir() and name != MANIFEST:
            yield name, path


def _entry(line: str) -> tuple[str, str]:
    digest, _, name = line.partition("  ")
    if len(digest) != 64 or not name:
        raise ValueError(f"not an entry: {line[:80]!r}")
    return name, digest
