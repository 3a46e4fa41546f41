"""A sealed directory: any change is found, and named."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import checksums, safe_files
from pipeline.base.checksums import MANIFEST, damage, hash_of, seal
from pipeline.base.safe_files import open_file


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    place = tmp_path / "result"
    (place / "package").mkdir(parents=True)
    (place / "weights").write_bytes(bytes(range(256)) * 40)
    (place / "package" / "a b.json").write_text("{}")
    (place / "empty").touch()
    seal(place)
    return place


def test_what_was_sealed_is_whole(sealed: Path) -> None:
    assert damage(sealed) is None


def test_public_tools_read_the_manifest(sealed: Path) -> None:
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", MANIFEST], cwd=sealed, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert len(checked.stdout.splitlines()) == 3


@given(
    name=st.sampled_from(["weights", "package/a b.json", MANIFEST]),
    place=st.integers(0),
    bit=st.integers(0, 7),
)
def test_every_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, bit: int
) -> None:
    directory = tmp_path_factory.mktemp("result")
    (directory / "package").mkdir()
    (directory / "weights").write_bytes(bytes(100))
    (directory / "package" / "a b.json").write_text("{}")
    seal(directory)
    content = bytearray((directory / name).read_bytes())
    content[place % len(content)] ^= 1 << bit
    (directory / name).write_bytes(content)
    assert damage(directory) is not None


def test_what_is_wrong_is_named(sealed: Path) -> None:
    with (sealed / "weights").open("r+b") as file:
        file.truncate(100)
    assert damage(sealed) == "weights is not what was written"
    (sealed / "weights").unlink()
    assert damage(sealed) == "weights is missing"
    (sealed / MANIFEST).unlink()
    assert damage(sealed) == f"{MANIFEST} is missing"


def test_added_files_are_found_unless_allowed(sealed: Path) -> None:
    (sealed / "debug.csv").touch()
    assert damage(sealed) == "debug.csv was added"
    assert damage(sealed, more_allowed=True) is None
    (sealed / "empty").write_text("no more")
    assert damage(sealed, more_allowed=True) == "empty is not what was written"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_damage(sealed: Path) -> None:
    (sealed / "weights").chmod(0)
    assert damage(sealed) == "weights is not what was written"


def test_a_link_in_place_of_a_directory_is_not_followed(sealed: Path, tmp_path: Path) -> None:
    shutil.move(sealed / "package", tmp_path / "elsewhere")
    (sealed / "package").symlink_to(tmp_path / "elsewhere")
    assert damage(sealed) is not None


def test_hash_of_a_file_longer_than_a_block(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc" * 2**20)
    expected = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True)
    assert hash_of(file) == expected.stdout.split()[0]


@pytest.mark.parametrize("name", ["weights", MANIFEST])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EACCES])
def test_what_cannot_be_read_now_is_no_damage(
    sealed: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> BinaryIO:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path)

    for module in (checksums, safe_files):
        monkeypatch.setattr(module, "open_file", fails)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        damage(sealed)
    monkeypatch.undo()
    assert damage(sealed) is None
