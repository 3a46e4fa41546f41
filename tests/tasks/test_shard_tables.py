"""What shards hold is kept in the cache, and read again where it is not what it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.recipe.input_shape import square
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images import shard_scan
from pipeline.tasks.images.load import decoded_places
from pipeline.tasks.images.members import Members
from tests.making.image_cache import refuse
from tests.making.photos import SIZE, assert_same, make_folders
from tests.making.shards import (
    as_shards,
    complaint,
    load,
)


def test_headers_are_read_once_and_those_of_changed_shards_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folders(tmp_path / "photos")
    config, cache = as_shards(tmp_path / "photos", tmp_path / "shards"), tmp_path / "cache"
    read: list[str] = []
    plain = shard_scan.read_shard

    def noted(path: Path, *rest: Any) -> Any:
        read.append(f"{path.parent.name}/{path.name}")
        return plain(path, *rest)

    monkeypatch.setattr(shard_scan, "read_shard", noted)
    before = load(config, cache)
    assert len(read) == 4 + 2 + 2
    read.clear()
    with monkeypatch.context() as patched:
        patched.setattr(Members, "content", refuse)
        assert_same(load(config, cache), before)
    assert read == []
    shard = tmp_path / "shards" / "train" / "0001.tar"
    os.utime(shard, (1, 1))
    assert_same(load(config, cache), before)
    assert read == ["train/0001.tar"]
    read.clear()
    shutil.copy(shard, shard.with_name("0009.tar"))
    assert len(load(config, cache).train) == len(before.train) + 4
    assert read == ["train/0009.tar"]
    read.clear()
    other = config.model_copy(update={"label": "folder"})
    assert "in no folder" in complaint(other, cache)
    assert len(read) == 9


@pytest.mark.parametrize("where", ["flip", "cut", "shape", "text"])
def test_a_damaged_table_is_made_again(where: str, tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    config, cache = as_shards(tmp_path / "photos", tmp_path / "shards"), tmp_path / "cache"
    before = load(config, cache)
    root = tmp_path / "shards" / "train"
    place = shard_scan.table_of(cache, root, "cls")
    assert place in decoded_places(config, square(SIZE), cache)
    content = bytearray(place.read_bytes())
    if where == "flip":
        content[len(content) // 2] ^= 1
        place.write_bytes(content)
    elif where == "cut":
        place.write_bytes(content[:-40])
    else:
        with np.load(place) as found:
            arrays = dict(found)
        if where == "shape":
            arrays["offsets"] = arrays["offsets"][:-1]
        else:
            arrays["about"] = np.frombuffer(json.dumps({"shards": 3}).encode(), np.uint8)
        np.savez(place, **arrays)
    assert_same(load(config, cache), before)


def test_places_are_told_without_writing(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    config, cache = as_shards(tmp_path / "photos", tmp_path / "shards"), tmp_path / "cache"
    places = decoded_places(config, square(SIZE), cache)
    assert not cache.exists()
    load(config, cache)
    kept = {path for path in cache.glob("*") if not path.name.startswith(".")}
    assert kept | set((cache / ".index").iterdir()) == places


def test_a_shard_written_to_while_a_run_reads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    make_folders(tmp_path / "photos")
    config = as_shards(tmp_path / "photos", tmp_path / "shards")
    found = load(config)
    shard = tmp_path / "shards" / "train" / "0000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(InputError, match=r"0000\.tar: was written to since its members were"):
        found.train.pixels(torch.arange(3))
    os.remove(shard)
    with pytest.raises(InputError, match=r"cannot read image .*/0000\.tar/000000\.png: No such"):
        found.train.pixels(torch.arange(3))


def test_rows_take_no_object_each(tmp_path: Path) -> None:
    """What a set holds is arrays and one text, whatever the number of images."""
    make_folders(tmp_path / "photos")
    config = as_shards(tmp_path / "photos", tmp_path / "shards")
    scan = shard_scan.scan_shards("data.train", Path(str(config.train)), "cls", None)
    kinds = {type(value) for value in vars(scan.images).values()}
    assert kinds == {type(tmp_path), tuple, np.ndarray, bytes}
    assert len(scan.images.archives) == 4
    states = scan.images.states()
    assert len(np.unique(states[:, 3])) == len(scan.images) == 13
    assert (states >= 0).all()
