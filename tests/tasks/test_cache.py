"""Decoded images on disk: found again, checked before they are used, done without if need be."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from pipeline.base import checksums
from pipeline.base.checksums import MANIFEST
from pipeline.base.errors import InputError
from pipeline.base.safe_files import open_file
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.stages.run import run_recipes
from pipeline.tasks.images import cache as image_cache
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import load_dataset
from tests.making.photos import (
    SIZE,
    all_sets,
    assert_same,
    every_pixel,
    folder_config,
    make_folders,
)
from tests.making.recipes import DEVICE_RECIPES, NARROW


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path / "data")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


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
    read = images_module.bytes_of

    def noted(file: Path) -> bytes:
        seen.append(file.name)
        return read(file)

    monkeypatch.setattr(images_module, "bytes_of", noted)
    return seen


def kept(cache: Path) -> list[Path]:
    """The results in a cache; its locks have names that begin with a dot."""
    return [place for place in cache.glob("*") if not place.name.startswith(".")]


def bytes_of(directory: Path) -> dict[str, bytes]:
    files = [path for place in kept(directory) for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


# Found again


def test_a_later_run_reads_no_image(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folders, cache)
    before = bytes_of(cache)
    assert len(before) == 3 * 3, "three folders of three files"
    monkeypatch.setattr(images_module, "read_files", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    assert_same(first, load(folders, cache))
    assert bytes_of(cache) == before


def test_the_data_are_those_without_a_cache(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = load(folders, None)
    assert isinstance(in_memory.train.source, torch.Tensor)
    for _ in range(2):
        kept = load(folders, cache)
        assert isinstance(kept.train.source, np.ndarray)
        assert_same(in_memory, kept)
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    assert_same(load(folders, None), load(folders, cache))


def test_it_serves_every_split_of_a_folder_and_the_folder_elsewhere(
    folders: ImageFolderData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folders, cache)
    monkeypatch.setattr(images_module, "read_files", refuse)
    fewer = load(folders.model_copy(update={"calibration_images": 3}), cache)
    assert (len(fewer.train), len(fewer.calibration)) == (10, 3)
    (tmp_path / "data").rename(tmp_path / "moved")
    load(folder_config(tmp_path / "moved"), cache)


def test_one_folder_may_be_two_sets(folders: ImageFolderData, cache: Path) -> None:
    both = folders.model_copy(update={"test": {"same": folders.train}})
    assert_same(load(both, None), load(both, cache))
    assert len(kept(cache)) == 1


def test_pixels_are_mapped_for_reading_and_given_as_copies(
    folders: ImageFolderData, cache: Path
) -> None:
    train = load(folders, cache).train
    before, kept = every_pixel(train).clone(), bytes_of(cache)
    every_pixel(train).zero_()
    assert torch.equal(every_pixel(train), before)
    assert isinstance(train.source, np.ndarray)
    with pytest.raises(ValueError, match="read-only"):
        train.source[0] = 0
    assert bytes_of(cache) == kept
    some = train.take(torch.tensor([5, 1, 3])).take(torch.tensor([2, 0]))
    assert torch.equal(every_pixel(some), before[[3, 5]])
    assert torch.equal(some.labels, train.labels[[3, 5]])
    assert every_pixel(some.take(torch.tensor([], dtype=torch.int64))).shape == (0, 3, SIZE, SIZE)


# What changed is read again


def another_image_of_the_same_size_and_time(root: Path) -> None:
    file = root / "night" / "cat" / "0.png"
    before = file.stat()
    content = bytearray(file.read_bytes())
    with Image.open(io.BytesIO(content)) as image:
        changed = Image.fromarray(255 - np.asarray(image))
    stream = io.BytesIO()
    changed.save(stream, "png")
    file.write_bytes(stream.getvalue()[: len(content)].ljust(len(content), b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def two_images_swapped(root: Path) -> None:
    one, other = root / "day" / "ant" / "0.png", root / "day" / "bee" / "0.png"
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)


def one_image_moved_to_another_class(root: Path) -> None:
    (root / "train" / "ant" / "5.jpg").rename(root / "train" / "bee" / "-.jpg")


def one_image_less(root: Path) -> None:
    (root / "day" / "cat" / "1.jpg").unlink()


def one_image_more(root: Path) -> None:
    shutil.copy2(root / "day" / "cat" / "1.jpg", root / "day" / "cat" / "2.jpg")


@pytest.mark.parametrize(
    "change",
    [
        another_image_of_the_same_size_and_time,
        two_images_swapped,
        one_image_moved_to_another_class,
        one_image_less,
        one_image_more,
    ],
)
def test_changed_files_are_read_again(
    change: Callable[[Path], None], folders: ImageFolderData, cache: Path, tmp_path: Path
) -> None:
    before = load(folders, cache).sha256
    change(tmp_path / "data")
    changed = load(folders, cache)
    assert changed.sha256 != before
    assert_same(load(folders, None), changed)


def test_only_the_folder_that_changed_is_read_again(
    folders: ImageFolderData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folders, cache)
    one_image_less(tmp_path / "data")
    seen = reads(monkeypatch)
    load(folders, cache)
    assert len(seen) == 5


def test_another_size_has_pixels_of_its_own(folders: ImageFolderData, cache: Path) -> None:
    load(folders, cache)
    assert_same(load_dataset(folders, square(48)), load_dataset(folders, square(48), cache=cache))


@pytest.mark.parametrize("what", ["code", "pillow", "codec"])
def test_other_decoding_decodes_again(
    what: str, folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folders, cache)
    if what == "code":
        monkeypatch.setattr(image_cache, "_code", lambda: "another")
    elif what == "pillow":
        monkeypatch.setattr(image_cache, "pillow", "0.0")
    else:
        monkeypatch.setattr(image_cache.features, "version", lambda name: "0.0")
    seen = reads(monkeypatch)
    load(folders, cache)
    assert len(seen) == 13 + 6 + 6


def test_the_code_that_decodes_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_cache._code()
    changed = tmp_path / "images.py"
    changed.write_text(Path(images_module.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(images_module, "__file__", str(changed))
    image_cache._code.cache_clear()
    assert image_cache._code() != before
    image_cache._code.cache_clear()


# Damage


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


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_made_again(
    damage: Callable[[Path], object], folders: ImageFolderData, cache: Path
) -> None:
    load(folders, cache)
    whole = bytes_of(cache)
    for place in kept(cache):
        damage(place)
    assert bytes_of(cache) != whole
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
    monkeypatch.setattr(image_cache, "damage", lambda place: "pixels.npy is not what was written")
    with pytest.raises(InputError, match="reads back otherwise than it was written; check the"):
        load(folders, cache)


# What does not succeed leaves nothing


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
    assert not any(isinstance(images.source, np.ndarray) for images in all_sets(found).values())
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


# In a run


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
