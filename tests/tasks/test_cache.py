"""Decoded images on disk: found again, checked before they are used, done without if need be."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images import cache as image_cache
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.kept import KeptImages
from pipeline.tasks.images.load import load_dataset
from tests.making.image_cache import bytes_of, kept, load, reads, refuse
from tests.making.photos import (
    SIZE,
    assert_same,
    every_pixel,
    folder_config,
    make_folders,
)


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path / "data")


def test_a_later_run_reads_no_image(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folders, cache)
    before = bytes_of(cache)
    assert len(before) == 3 * 4, "three folders of four files"
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
        assert isinstance(kept.train.source, KeptImages)
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


def test_pixels_are_given_as_copies(folders: ImageFolderData, cache: Path) -> None:
    train = load(folders, cache).train
    before, kept = every_pixel(train).clone(), bytes_of(cache)
    every_pixel(train).zero_()
    assert torch.equal(every_pixel(train), before)
    assert bytes_of(cache) == kept
    some = train.take(torch.tensor([5, 1, 3])).take(torch.tensor([2, 0]))
    assert torch.equal(every_pixel(some), before[[3, 5]])
    assert torch.equal(some.labels, train.labels[[3, 5]])
    assert every_pixel(some.take(torch.tensor([], dtype=torch.int64))).shape == (0, 3, SIZE, SIZE)


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
    assert_same(load(folders, cache), load(folders, None))
    assert len(seen) == 13 + 5 + 6, "with a cache none: all that is left lies decoded"


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
