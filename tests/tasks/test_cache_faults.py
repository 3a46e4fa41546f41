"""Images that were kept and are damaged, or find no room."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest
from rich.console import Console

from pipeline.base import checksums
from pipeline.base.checksums import MANIFEST
from pipeline.base.errors import InputError
from pipeline.base.safe_files import open_file
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.run import run_recipes
from pipeline.tasks.images import cache as image_cache
from pipeline.tasks.images import kept as kept_images
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.kept import KeptImages
from tests.making.image_cache import bytes_of, kept, load, reads, refuse
from tests.making.photos import (
    all_sets,
    assert_same,
    make_folders,
)
from tests.making.recipes import DEVICE_RECIPES, NARROW


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path / "data")


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a pixel": lambda place: flip_a_bit(place / "pixels.npy", -1),
    "the array's header": lambda place: flip_a_bit(place / "pixels.npy", 20),
    "a digest": lambda place: flip_a_bit(place / "digests.npy", -1),
    "pixels cut": lambda place: os.truncate(place / "pixels.npy", 5000),
    "pixels empty": lambda place: os.truncate(place / "pixels.npy", 0),
    "more than the pixels": lambda place: (place / "pixels.npy").open("ab").write(b"\0"),
    "no pixels": lambda place: (place / "pixels.npy").unlink(),
    "no digests": lambda place: (place / "digests.npy").unlink(),
    "no hashes": lambda place: (place / MANIFEST).unlink(),
    "half of the hashes": lambda place: os.truncate(place / MANIFEST, 30),
    "something else": lambda place: (place / MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_is_made_again(name: str, folders: ImageFolderData, cache: Path) -> None:
    damage, mended = DAMAGE[name], name == "a pixel"  # which is found when it is read
    load(folders, cache)
    whole = bytes_of(cache)
    for place in kept(cache):
        damage(place)
    assert bytes_of(cache) != whole
    told = pytest.warns(UserWarning, match="was not as it was written") if mended else nullcontext()
    with told:
        assert_same(load(folders, None), load(folders, cache))
    assert bytes_of(cache) == whole


@pytest.mark.parametrize("name", ["pixels.npy", "digests.npy"])
def test_images_that_cannot_be_read_now_stay(
    name: str, folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folders, cache)
    whole = bytes_of(cache)

    def fails(path: Path) -> BinaryIO:
        if path.name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return open_file(path)

    monkeypatch.setattr(checksums, "open_file", fails)
    monkeypatch.setattr(kept_images, "open_file", fails)
    with pytest.raises(OSError, match="Input/output error"):
        load(folders, cache)
    monkeypatch.undo()
    assert bytes_of(cache) == whole
    monkeypatch.setattr(images_module, "read_files", refuse)
    assert_same(first, load(folders, cache))


def test_the_pixels_of_another_folder_are_not_taken(folders: ImageFolderData, cache: Path) -> None:
    load(folders, cache)
    places = sorted(kept(cache), key=lambda place: (place / "pixels.npy").stat().st_size)
    shutil.rmtree(places[-1])
    shutil.copytree(places[0], places[-1])
    assert_same(load(folders, None), load(folders, cache))


def test_a_disk_that_gives_back_something_else_is_named(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = "digests.npy is not what was written"
    monkeypatch.setattr(kept_images, "damage", lambda place, **_: found)
    with pytest.raises(InputError, match="reads back otherwise than it was written; check the"):
        load(folders, cache)


def test_an_unreadable_image_is_named_as_without_a_cache(
    folders: ImageFolderData, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "data" / "train" / "ant" / "0.png").write_bytes(b"not a picture")
    (tmp_path / "data" / "day" / "ant" / "0.png").unlink()
    (tmp_path / "data" / "day" / "ant" / "0.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError) as expected:
        load(folders, None)
    with pytest.raises(InputError) as found:
        load(folders, cache)
    assert str(found.value) == str(expected.value)
    assert len(str(found.value).splitlines()) == 2
    assert len(kept(cache)) == 1, "the folder of good images"


def test_an_interrupted_run_leaves_nothing(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(images_module, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(folders, cache)
    assert kept(cache) == []
    load(folders, cache)
    killed = [cache / f".making-{place.name}-abc" for place in kept(cache)]
    for left in killed:
        left.mkdir()
        shutil.rmtree(cache / left.name.split("-")[1])
    load(folders, cache)
    assert not any(left.exists() for left in killed)
    assert len(kept(cache)) == 3


def assert_done_without(folders: ImageFolderData, cache: Path) -> None:
    found = load(folders, cache)
    assert_same(load(folders, None), found)
    assert not any(isinstance(images.source, KeptImages) for images in all_sets(found).values())
    assert not kept(cache)
    assert len(found.notes) == 3
    note = found.notes[0]
    assert "\n" not in note
    assert note.startswith(f"no disk space left in {cache} to keep the images of {folders.train}")


def test_too_little_room_is_done_without(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "_RESERVE_BYTES", 2**60)
    seen = reads(monkeypatch)
    assert_done_without(folders, cache)
    assert len(seen) == 2 * 25, "nothing is decoded that cannot be kept"


@pytest.mark.parametrize("at_once", [True, False])
def test_room_that_runs_out_is_done_without(
    at_once: bool, folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system call writes a part before it fails; one file at a time may get through."""
    write, calls = os.pwrite, []

    def full(file: int, content: bytes, place: int) -> int:
        calls.append(place)
        if len(calls) % 5:
            return write(file, content, place)
        if at_once:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:100], place)

    monkeypatch.setattr(os, "pwrite", full)
    assert_done_without(folders, cache)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a tmpfs")
def test_a_disk_that_is_really_full(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(cache)])
    if mounted.returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        monkeypatch.setattr(image_cache, "_RESERVE_BYTES", -(2**30))
        assert_done_without(folders, cache)
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_other_failures_are_not_called_a_full_disk(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output"):
        load(folders, cache)
    assert not kept(cache)


def test_a_run_keeps_the_images_in_its_store_and_says_when_it_cannot(
    folders: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "folder.yaml"
    recipe.write_text(
        f"extends: {DEVICE_RECIPES['onnx']}\n"
        f"data: {{kind: image_folder, train: {folders.train}, test: {{day: {folders.test['day']}}},"
        " calibration_images: 4}\n"
    )
    loaded = load_recipes([recipe], [*NARROW, "train.epochs=0"])

    def shown(out: Path) -> str:
        text = io.StringIO()
        run_recipes(loaded, out, Console(file=text, width=400), until="train")
        return text.getvalue()

    assert "disk space" not in shown(tmp_path / "out")
    assert len(kept(tmp_path / "out" / ".store" / "images")) == 2
    monkeypatch.setattr(images_module, "read_files", refuse)
    assert "reused" in shown(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(image_cache, "_RESERVE_BYTES", 2**60)
    text = shown(tmp_path / "full")
    assert text.count("no disk space left in") == 2
