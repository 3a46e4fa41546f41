"""Shards are what folders are: the same photos give the same bits, wherever they lie."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.recipe.data import ImageFolderData, WebDatasetData
from pipeline.recipe.training import AugmentConfig, TrainConfig
from pipeline.tasks.images import pixels as images_module
from pipeline.tasks.images.batches import ProcessShare, batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.load import class_names
from pipeline.tasks.images.members import Members
from tests.making.networks import ONE_BLOCK, same_state, small
from tests.making.photos import all_sets, assert_same, make_folders
from tests.making.shards import (
    Named,
    as_shards,
    complaint,
    load,
    samples_of,
    shards_config,
    write_shard,
    write_shards,
)
from tests.making.training import fit

LABELS = ("cls", "folder", "json:class")


@pytest.fixture
def photos(tmp_path: Path) -> ImageFolderData:
    return make_folders(tmp_path / "photos")


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("kept", [False, True])
def test_shards_give_what_folders_give(
    label: str, kept: bool, photos: ImageFolderData, tmp_path: Path
) -> None:
    config = as_shards(tmp_path / "photos", tmp_path / "shards", label)
    cache = tmp_path / "cache" if kept else None
    found, expected = load(config, cache), load(photos, cache)
    assert_same(found, expected)
    assert found.training_sha256 == expected.training_sha256
    assert (found.name, expected.name) == ("webdataset", "image_folder")
    assert class_names(config) == class_names(photos) == ("ant", "bee", "cat")
    assert_same(load(config, cache), expected)


@pytest.mark.parametrize("kept", [False, True])
def test_files_decoded_when_asked_for_are_the_same_with_workers_and_in_processes(
    kept: bool, photos: ImageFolderData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "MEMORY_LIMIT_BYTES", 0)
    changes: dict[str, Any] = {"crop_pct": 0.8, "calibration_images": 1}
    folders = load(photos.model_copy(update=changes))
    config = as_shards(tmp_path / "photos", tmp_path / "shards", **changes)
    augmented = AugmentConfig(crop=(0.3, 1.0), policy="trivialaugment", flip=True)
    expected = epoch(folders, augmented)
    for workers in (0, 2):
        cache = tmp_path / f"cache{workers}" if kept else None
        shards = load(config.model_copy(update={"workers": workers}), cache)
        assert isinstance(shards.train.source, Members) is not kept
        assert all(map(torch.equal, epoch(shards, augmented), expected))
        for first in range(2):
            share = ProcessShare(parts=2, first=first)
            mine = epoch(folders, augmented, share)
            assert all(map(torch.equal, epoch(shards, augmented, share), mine))


def epoch(dataset: Dataset, config: AugmentConfig, share: ProcessShare | None = None) -> list[Any]:
    torch.manual_seed(5)
    given = batches(
        dataset.train,
        4,
        dataset,
        augment_config=config,
        generator=torch.Generator().manual_seed(3),
        share=share or ProcessShare(),
    )
    return [one for x, y in given for one in (x, y)]


@pytest.mark.slow
def test_a_training_ends_in_the_same_weights(photos: ImageFolderData, tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, batch_size=3, learning_rate=0.05)

    def trained(dataset: Dataset) -> torch.nn.Module:
        torch.manual_seed(0)
        model = small(layers=ONE_BLOCK)
        fit(model, dataset, config, 1)
        return model

    shards = load(as_shards(tmp_path / "photos", tmp_path / "shards"))
    assert same_state(trained(shards), trained(load(photos)))


# Where shards lie


def test_several_sets_lie_in_one_folder_told_apart_by_names(
    photos: ImageFolderData, tmp_path: Path
) -> None:
    place = tmp_path / "all"
    for name in ("train", "day", "night"):
        write_shards(place, samples_of(tmp_path / "photos" / name, names=True), first=f"x-{name}-")
    for name in ("README.md", "x-day-0000.tar.idx", ".x-day-0009.tar"):
        (place / name).write_text("not looked at")
    config = WebDatasetData(
        train=place / "x-train-*.tar",
        test={name: place / f"*-{name}-*" for name in ("day", "night")},
        calibration_images=5,
    )
    assert_same(load(config, tmp_path / "cache"), load(photos))
    one = write_shard(
        tmp_path / "one.tar", [m for s in samples_of(tmp_path / "photos" / "day") for m in s]
    )
    single = WebDatasetData(train=one, test={"t": one}, calibration_images=1)
    assert len(load(single).tests["t"]) == 6


def test_letters_of_a_name_with_a_star_mean_themselves(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    samples = samples_of(tmp_path / "photos" / "day")
    write_shards(tmp_path / "s", samples, first="[a]-")
    write_shards(tmp_path / "s", samples, first="a-")
    config = WebDatasetData(
        train=tmp_path / "s" / "[a]-*", test={"t": tmp_path / "s" / "*"}, calibration_images=1
    )
    found = load(config)
    assert (len(found.train), len(found.tests["t"])) == (5, 12)


def test_one_path_stands_for_all_sets(photos: ImageFolderData, tmp_path: Path) -> None:
    config = as_shards(tmp_path / "photos", tmp_path / "shards")
    (tmp_path / "shards" / "day").rename(tmp_path / "shards" / "val-day")
    (tmp_path / "shards" / "night").rename(tmp_path / "shards" / "test")
    whole = WebDatasetData(path=tmp_path / "shards", calibration_images=5)
    found = load(whole)
    assert list(found.tests) == ["test", "val-day"]
    expected = load(photos)
    assert torch.equal(found.train.labels, expected.train.labels)
    gone = config.model_copy(update={"train": None, "test": None, "path": tmp_path / "nowhere"})
    assert "give a folder that holds train/ and test/ (or val/) with .tar files" in complaint(gone)


def test_other_members_are_skipped_or_told(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    one = samples_of(tmp_path / "photos" / "day")
    members: list[Named] = [
        ("__index__", b"x"),
        ("__own__/1.png", b"x"),
        ("README.md", b"x"),
        ("data", b"x"),
    ]
    for number, (image, label) in enumerate(one):
        members += [(f"./._{number}.png", b"x"), (f".hidden/{number}.png", b"x")]
        members += [(f"PaxHeaders.7/{image[0]}", b"x"), image, label]
        members += [(f"{label[0].removesuffix('.cls')}.json", b"{}")]
    members += [("moving.gif", b"x"), ("moving.cls", b"0"), ("a/Thumbs.db", b"x")]
    file = write_shard(tmp_path / "s" / "a.tar", members)
    with tarfile.open(file, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            odd = tarfile.TarInfo(f"odd{kind.decode()}.png")
            odd.type, odd.linkname = kind, "/etc/hostname"
            archive.addfile(odd)
    found = load(WebDatasetData(train=file, test={"t": file}, calibration_images=1))
    assert len(found.tests["t"]) == 6
    assert found.passed_over == {"links": 6, ".md": 2, ".gif": 2, ".cls": 2}
    notes = "\n".join(found.notes)
    assert f"data.train: passed over: 1 .md, 1 .cls (such as {file}/README.md); no image" in notes
    assert f"passed over: 3 links (such as {file}/odd2.png); links and devices" in notes


def test_damaged_images_are_refused_or_skipped(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    samples = samples_of(tmp_path / "photos" / "train", names=True)
    samples[2][0] = (samples[2][0][0], samples[2][0][1][:60])
    write_shards(tmp_path / "s" / "train", samples)
    for name in ("day", "night"):
        write_shards(tmp_path / "s" / name, samples_of(tmp_path / "photos" / name, names=True))
    config = shards_config(tmp_path / "s", calibration_images=2)
    assert f"cannot read image {tmp_path}/s/train/0000.tar/000002.png" in complaint(config)
    skip = config.model_copy(update={"damaged": "skip", "damaged_share": 0.1})
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found = load(skip, cache)
        assert found.damaged == {"train": 1}
        assert "1 of 13 image files are damaged, skipped: 0000.tar/000002.png" in found.notes[0]
    few = config.model_copy(update={"damaged": "skip", "damaged_share": 0.0})
    assert "1 of 13 image files in" in complaint(few)
    for sample in samples[10:]:
        sample[0] = (sample[0][0], b"x")
    write_shards(tmp_path / "s" / "train", samples)
    many = config.model_copy(update={"damaged": "skip", "damaged_share": 0.9})
    assert "class 'cat' has damaged images only" in complaint(many)


def test_sets_without_labels_calibrate(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    config = as_shards(tmp_path / "photos", tmp_path / "shards")
    bare = [[sample[0]] for sample in samples_of(tmp_path / "photos" / "night")]
    place = write_shards(tmp_path / "bare", bare)
    found = load(config.model_copy(update={"calibration": place, "calibration_images": 4}))
    assert {name: len(images) for name, images in all_sets(found).items()} == {
        "train": 13, "calibration": 4, "day": 6, "night": 6,
    }  # fmt: skip
