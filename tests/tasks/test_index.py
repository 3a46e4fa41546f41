"""The index of a folder: what was read once is not read again, and what changed is read alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images import cache as image_cache
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.dataset import draw_stratified, fingerprint
from pipeline.tasks.images.index import DAMAGED, HASHED, SOUND, Index, read_index, write_index
from pipeline.tasks.images.kept import KeptImages
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import Images
from pipeline.tasks.images.scan import scan_all, scan_folder
from pipeline.tasks.images.stored import Files
from tests.making.image_cache import kept, load, reads
from tests.making.photos import (
    SIZE,
    assert_same,
    every_pixel,
    folder_config,
    make_folders,
    write_image,
)


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path / "data")


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither disk nor memory for decoded images."""
    monkeypatch.setattr(image_cache, "_RESERVE_BYTES", 2**60)
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)


def indexes(cache: Path) -> list[Path]:
    return sorted((cache / ".index").iterdir())


@pytest.mark.usefixtures("no_room")
def test_what_was_hashed_is_not_read_again(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = reads(monkeypatch)
    first = load(folders, cache)
    assert isinstance(first.train.source, Files)
    assert len(seen) == 25
    assert len(indexes(cache)) == 3
    seen.clear()
    second = load(folders, cache)
    assert (second.sha256, second.training_sha256) == (first.sha256, first.training_sha256)
    assert seen == []
    assert_same(load(folders, None), second)


@pytest.mark.usefixtures("no_room")
def test_a_changed_file_is_hashed_alone(
    folders: ImageFolderData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(folders, cache).sha256
    write_image(tmp_path / "data" / "train" / "bee" / "2.png", seed=99)
    write_image(tmp_path / "data" / "train" / "ant" / "more" / "new.png", seed=98)
    (tmp_path / "data" / "train" / "cat" / "0.png").unlink()
    seen = reads(monkeypatch)
    after = load(folders, cache).sha256
    assert sorted(seen) == ["2.png", "new.png"]
    assert after == load(folders, None).sha256 != before


def test_a_changed_file_is_decoded_alone(
    folders: ImageFolderData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(folders, cache)
    write_image(tmp_path / "data" / "train" / "bee" / "2.png", seed=99)
    seen = reads(monkeypatch)
    found = load(folders, cache)
    assert seen == ["2.png"]
    assert_same(load(folders, None), found)


def test_what_is_no_longer_as_it_was_written_is_not_taken_over(
    folders: ImageFolderData, cache: Path, tmp_path: Path
) -> None:
    load(folders, cache)
    for place in kept(cache):
        content = bytearray((place / "pixels.npy").read_bytes())
        content[-1] ^= 1
        (place / "pixels.npy").write_bytes(content)
    write_image(tmp_path / "data" / "train" / "bee" / "2.png", seed=99)
    write_image(tmp_path / "data" / "day" / "bee" / "0.png", seed=97)
    write_image(tmp_path / "data" / "night" / "bee" / "0.png", seed=96)
    assert_same(load(folders, None), load(folders, cache))


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_damaged_index_is_made_again(folders: ImageFolderData, cache: Path, place: int) -> None:
    first = load(folders, cache)
    whole = {path: read_index(path) for path in indexes(cache)}
    for path in indexes(cache):
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content if place else b"")
    assert load(folders, cache).sha256 == first.sha256
    for path in indexes(cache):
        found, wanted = read_index(path), whole[path]
        assert found is not None
        assert wanted is not None
        assert np.array_equal(found.digests, wanted.digests)


@pytest.mark.usefixtures("no_room")
def test_what_is_damaged_is_known(
    folders: ImageFolderData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = tmp_path / "data" / "train" / "ant" / "0.png"
    torn.write_bytes(torn.read_bytes()[:300])
    skipping = folders.model_copy(update={"damaged": "skip", "damaged_share": 0.2})
    first = load(skipping, cache)
    assert first.damaged == {"train": 1}
    seen = reads(monkeypatch)
    assert load(skipping, cache).sha256 == first.sha256 == load(skipping, None).sha256
    assert len(seen) == 25, "those of the call without a cache"
    with pytest.raises(InputError, match=r"ant/0\.png"):
        load(folders, cache)
    monkeypatch.setattr(image_cache, "pillow", "0.0")
    seen.clear()
    load(skipping, cache)
    assert len(seen) == 25, "another decoder may decode others"


@pytest.mark.usefixtures("no_room")
def test_a_disk_without_room_for_an_index_is_done_without(
    folders: ImageFolderData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = errno.ENOSPC

    def fails(file: object, **_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "savez", fails)
    expected = load(folders, None).sha256
    for _ in range(2):
        assert load(folders, cache).sha256 == expected
        assert indexes(cache) == []
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        load(folders, cache)


def test_a_pixel_that_changed_is_decoded_again_and_put_back(
    folders: ImageFolderData, cache: Path, tmp_path: Path
) -> None:
    load(folders, cache)
    found = load(folders, cache).tests["day"]
    assert isinstance(found.source, KeptImages)
    path = found.source.path
    whole = path.read_bytes()
    image = 3 * SIZE**2
    path.write_bytes(whole[: -3 * image] + bytes([whole[-3 * image] ^ 4]) + whole[1 - 3 * image :])
    expected = load(folders, None).tests["day"]
    with pytest.warns(UserWarning, match=r"pixels.npy: image 4 was not as it was written, and was"):
        assert torch.equal(every_pixel(found), every_pixel(expected))
    assert path.read_bytes() == whole
    os.truncate(path, len(whole) - image)
    again = load(folders, cache).tests["day"]
    assert torch.equal(every_pixel(again), every_pixel(expected)), "made anew: of another size"
    os.truncate(path, len(whole) - image)
    write_image(tmp_path / "data" / "day" / "cat" / "1.jpg", seed=77)
    assert isinstance(again.source, KeptImages)
    again.source._checked[:] = False
    with pytest.raises(InputError, match=r"image 6 is not as it was written, and the file that it"):
        again.pixels(torch.tensor([5]))


def test_an_index_finds_files_in_another_order_and_number(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    states = generator.integers(0, 3, (50, 4)).astype(np.int64)
    states[:, 3] = generator.permutation(50) // 2  # of two with one inode only one is the same
    states[:, 0] = np.arange(50)
    index = Index.empty(states, "decoder")
    index.digests[:] = generator.integers(0, 256, (50, 32), np.uint8)
    index.known[:] = generator.integers(0, 4, 50, np.uint8)
    write_index(tmp_path / "folder" / "one.npz", index)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["one.npz"]
    kept_index = read_index(tmp_path / "folder" / "one.npz")
    assert kept_index is not None
    found = kept_index.of(states, "decoder")
    assert np.array_equal(found.digests, index.digests)
    rows = generator.permutation(50)[:30]
    asked = states[rows]
    asked[7, 1] += 10  # another time
    some = kept_index.of(asked, "decoder")
    same = [row for row in range(30) if row != 7 and is_first_of_inode(states, rows, row)]
    assert len(same) > 10
    assert np.array_equal(some.digests[same], index.digests[rows[same]])
    assert np.array_equal(some.known[same], index.known[rows[same]])
    assert some.known[7] == 0
    other = kept_index.of(states, "another")
    assert set(other.known[index.known >= SOUND].tolist()) == {HASHED}
    assert DAMAGED not in other.known
    assert read_index(tmp_path / "nothing.npz") is None


def is_first_of_inode(states: np.ndarray, rows: np.ndarray, number: int) -> bool:
    inode = states[rows[number], 3]
    return int((states[:, 3] == inode).argmax()) == rows[number]


def test_images_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = "a/b.png", "a-1/c.png", "a.png", "a/B/d.png", "a b.png", "ä/é.png", "a/b/1.png", "Z.png"
    for part in ("one", "two-2", "two"):
        for name in names:
            file = tmp_path / part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    (tmp_path / "two" / "linked").symlink_to(tmp_path / "one", target_is_directory=True)
    (tmp_path / "two" / "file.png").symlink_to(tmp_path / "one" / "a.png")
    (tmp_path / "two" / ".hidden.png").write_bytes(b"")
    scan = scan_folder("data.train", tmp_path)
    found = [path for path in scan.images]
    walked = [
        Path(place, name)
        for part in ("one", "two", "two-2")
        for place, _, names in os.walk(tmp_path / part)
        for name in names
        if not name.startswith(".")
    ]
    assert found == sorted(walked)
    assert {name: list(scan.images[rows]) for name, rows in scan.by_class()} == {
        part: [path for path in found if path.relative_to(tmp_path).parts[0] == part]
        for part in ("one", "two", "two-2")
    }
    assert list(scan_all("data.calibration", tmp_path).images) == found
    part = scan.images[3:7]
    assert (list(part), len(part), part.path(0)) == (found[3:7], 4, found[3])
    assert Files.joined(tmp_path, [part, scan.images[:2]])[5] == found[1]


def test_the_fingerprint_is_that_of_lists(folders: ImageFolderData) -> None:
    dataset = load_dataset(folders, square(SIZE))
    labels = torch.arange(150_000) % 1000
    images = Images(labels=labels, shape=square(4), source=torch.zeros(1, 3, 4, 4))
    digests = np.random.default_rng(0).integers(0, 256, (len(labels), 32), np.uint8)
    many = Images(
        labels=torch.ones((70_000, 2), dtype=torch.uint8), shape=square(4), source=images.source
    )
    none = Images(labels=labels[:0], shape=square(4), source=images.source)
    sets = {"train": images, "day": many, "none": none}
    found = fingerprint(dataset.classes, sets, dict.fromkeys(sets, digests))
    whole = hashlib.sha256(json.dumps(list(dataset.classes)).encode())
    for name, one in sets.items():
        whole.update(json.dumps([name, one.labels.tolist()]).encode())
        for digest in digests:
            whole.update(digest.tobytes())
    assert found == whole.hexdigest()


def test_a_draw_of_many_classes_is_that_of_a_loop_over_them() -> None:
    labels = torch.randint(0, 300, (5000,), generator=torch.Generator().manual_seed(1))
    found = draw_stratified(labels, 700, seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.bincount(labels[found], minlength=300).tolist()
    picks = []
    for label, number in enumerate(drawn):
        members = (labels == label).nonzero().flatten()
        picks.append(members[torch.randperm(len(members), generator=generator)[:number]])
    whole = torch.cat(picks)
    assert torch.equal(found, whole[torch.randperm(len(whole), generator=generator)])


def test_folders_of_two_paths_have_an_index_each(folders: ImageFolderData, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_folders(tmp_path / "other")
    load(folders, cache)
    load(folder_config(tmp_path / "other"), cache)
    assert len(indexes(cache)) == 6
