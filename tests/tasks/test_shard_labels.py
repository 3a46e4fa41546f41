"""What says the class of an image in a shard, and samples that are not whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.recipe.data import WebDatasetData
from pipeline.tasks.images import samples as samples_module
from tests.making.photos import make_folders
from tests.making.shards import (
    Named,
    complaint,
    load,
    samples_of,
    write_shard,
    write_shards,
)


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    samples = samples_of(tmp_path / "photos" / "day")
    for sample, label in zip(samples, (10, 9, 9, 2, 2, 10), strict=True):
        sample[1] = (sample[1][0], f" {label}\n".encode())
    write_shards(tmp_path / "s", samples)
    config = WebDatasetData(train=tmp_path / "s", test={"t": tmp_path / "s"}, calibration_images=1)
    found = load(config)
    assert found.classes == ("2", "9", "10")
    assert found.tests["t"].labels.tolist() == [2, 1, 1, 0, 0, 2]


@pytest.mark.parametrize("names", [False, True])
def test_a_file_of_classes_orders_them_and_sets_may_lack_some(names: bool, tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    write_shards(tmp_path / "s", samples_of(tmp_path / "photos" / "day", names=names))
    order = "owl ant cat bee" if names else "ant bee cat owl"
    (tmp_path / "c.txt").write_text(order.replace(" ", "\n"))
    place = tmp_path / "s"
    config = WebDatasetData(classes=tmp_path / "c.txt", calibration=place, test={"t": place})
    found = load(config)
    assert found.classes == tuple(order.split())
    expected = [1, 1, 3, 3, 2, 2] if names else [0, 0, 1, 1, 2, 2]
    assert found.tests["t"].labels.tolist() == expected
    assert (len(found.calibration), len(found.train)) == (6, 0)


def test_numbers_are_names_where_classes_are_named_by_numbers(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    write_shards(tmp_path / "s", samples_of(tmp_path / "photos" / "day"))
    (tmp_path / "c.txt").write_text("2\n1\n0\n")
    place = tmp_path / "s"
    config = WebDatasetData(classes=tmp_path / "c.txt", calibration=place, test={"t": place})
    assert load(config).tests["t"].labels.tolist() == [2, 2, 1, 1, 0, 0]


def test_labels_that_no_class_has_are_named(tmp_path: Path) -> None:
    make_folders(tmp_path / "photos")
    place = write_shards(tmp_path / "s", samples_of(tmp_path / "photos" / "day"), each=9)
    classes = tmp_path / "c.txt"
    config = WebDatasetData(classes=classes, calibration=place, test={"t": place})
    classes.write_text("a\nb")
    assert complaint(config) == (
        f"data.test.t: labels '2' of 2 images (such as {place}/0000.tar/000004.png): data.classes "
        f"({classes}) has 2 names, so that a label is 0 to 1 or a name in it; correct the labels, "
        "or the file"
    )
    classes.write_text("0\nb")
    assert "labels '1', '2' of 4 images" in complaint(config)
    assert "a label is a name in it" in complaint(config)


def test_test_sets_without_a_file_of_classes_have_those_of_training(tmp_path: Path) -> None:
    config = as_shards_of_day(tmp_path)
    write_shards(tmp_path / "t", samples_of(tmp_path / "photos" / "day", names=True)[2:], each=9)
    write_shards(
        tmp_path / "u", [[("1.png", b"x"), ("1.cls", b"owl")], *samples_of_day(tmp_path)], each=9
    )
    told = complaint(config.model_copy(update={"test": {"t": tmp_path / "t", "u": tmp_path / "u"}}))
    assert told.splitlines() == [
        "data.test.t: labels differ from data.train's: missing 'ant'; make them equal",
        "data.test.u: labels differ from data.train's: not in train 'owl'; make them equal",
    ]


def samples_of_day(tmp_path: Path) -> list[list[Named]]:
    return samples_of(tmp_path / "photos" / "day", names=True)


def as_shards_of_day(tmp_path: Path, label: str = "cls") -> WebDatasetData:
    """One shard of six photos of three classes, as every set."""
    make_folders(tmp_path / "photos")
    samples = samples_of(tmp_path / "photos" / "day", label, names=True)
    place = write_shards(tmp_path / "s", samples, each=9)
    return WebDatasetData(train=place, test={"t": place}, calibration_images=1, label=label)


Change = Callable[[list[list[Named]]], None]


def lost_label(samples: list[list[Named]]) -> None:
    del samples[1][1], samples[2][1]


def lost_image(samples: list[list[Named]]) -> None:
    del samples[1][0]


def two_images(samples: list[list[Named]]) -> None:
    samples[1].append(("000001.seg.PNG", b"x"))


def two_labels(samples: list[list[Named]]) -> None:
    samples[1].append(("000001.other.cls", b"1"))


def no_text(samples: list[list[Named]]) -> None:
    samples[1][1], samples[2][1] = ("000001.cls", b"\xff"), ("000002.cls", b"a\nb")
    samples[3][1], samples[4][1] = ("000003.cls", b" "), ("000004.cls", b"x" * 2000)


def apart(samples: list[list[Named]]) -> None:
    samples.append([samples[1].pop()])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lost_label, "2 samples without a .cls member (such as SHARD/000001); members of a sample"),
        (lost_image, "1 sample with a label and without an image (such as SHARD/000001); members"),
        (two_images, "1 sample with more than one image (such as SHARD/000001: 000001.jpg, "
                     "000001.seg.PNG); keep one"),
        (two_labels, "1 sample with more than one label (such as SHARD/000001); keep one"),
        (no_text, "4 samples whose label is no whole number and no name (such as SHARD/000001: "
                  "'\\xff'); a label is"),
        (apart, "1 sample without a .cls member (such as SHARD/000001); members of a sample lie "
                "side by side"),
    ],
)  # fmt: skip
def test_samples_that_are_not_whole_are_counted(change: Change, words: str, tmp_path: Path) -> None:
    config = as_shards_of_day(tmp_path)
    samples = samples_of_day(tmp_path)
    change(samples)
    write_shards(tmp_path / "s", samples, each=9)
    told = complaint(config, tmp_path / "cache")
    shard = str(tmp_path / "s" / "0000.tar")
    for key in ("data.train", "data.test.t"):
        assert f"{key}: {words.replace('SHARD', shard)}" in told


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"class": 1.5}', b'{"class": true}', b'{"other": 1}', b"[" * 3000,
     b'{"class": [1]}', b"\xff", b'{"class": ' + b"1" * 5000 + b"}"],
)  # fmt: skip
def test_json_without_the_field_is_counted(content: bytes, tmp_path: Path) -> None:
    config = as_shards_of_day(tmp_path, "json:class")
    samples = samples_of(tmp_path / "photos" / "day", "json:class", names=True)
    samples[0][0] = (samples[0][0][0], content)
    write_shards(tmp_path / "s", samples, each=9)
    assert "1 sample whose .json member gives 'class' no text" in complaint(config)


def test_images_in_no_folder_have_no_label_where_it_is_the_folder(tmp_path: Path) -> None:
    config = as_shards_of_day(tmp_path, "folder")
    image = samples_of(tmp_path / "photos" / "day")[0][0][1]
    write_shard(
        tmp_path / "s" / "1.tar", [("a.png", image), ("./b.png", image), ("../c.png", image)]
    )
    told = complaint(config)
    assert f"data.train: 3 samples in no folder (such as {tmp_path}/s/1.tar/a)" in told


def test_a_sample_has_few_members(tmp_path: Path) -> None:
    config = as_shards_of_day(tmp_path)
    many = [(f"img.{number}.jpg", b"") for number in range(1001)]
    write_shard(tmp_path / "s" / "0000.tar", many)
    told = complaint(config)
    assert f"data.train: {tmp_path}/s/0000.tar: sample 'img' has more than 1000 members" in told
    write_shard(tmp_path / "s" / "0000.tar", many[:3])
    assert "img.0.jpg, img.1.jpg, img.2.jpg); keep one image in a sample" in complaint(config)


def test_hidden_means_hidden() -> None:
    hidden = samples_module._is_hidden
    assert [hidden(name) for name in (b"", b".", b"./a", b"../a", b"a.b/c", b"a..b")] == [False] * 6
    assert all(hidden(name) for name in (b".git", b"a/.x/b", b"./PaxHeaders.1", b"PaxHeader"))
