"""Annotations of objects, COCO's and Pascal VOC's: what is read of them, and their faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.recipe.data import CocoData, DigitScenesData, VocData
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images.augment import augment_as, draw_changes
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.boxed import (
    box_classes,
    box_places,
    boxes_dataset,
    scene_boxes_dataset,
)
from pipeline.tasks.images.boxes import CLASS, IGNORED, moved, there
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.scenes import scene_sets
from tests.making.boxed import HEIGHT, WIDTH, coco, voc

SHAPE = InputShape(channels=3, height=32, width=32)


def load(kind: str, path: Path, **changes: object) -> Dataset:
    given = {"path": path, "calibration_images": 1, "mean": [0.0] * 3, "std": [1.0] * 3} | changes
    config = {"coco": CocoData, "voc": VocData}[kind].model_validate(given)
    return boxes_dataset(config, SHAPE, 0, None)


def objects(dataset: Dataset, image: int) -> list[list[float]]:
    rows = dataset.tests["test"].labels[image]
    return [[round(value, 4) for value in row] for row in rows[there(rows)].tolist()]


def test_category_ids_may_be_any(tmp_path: Path) -> None:
    dataset = load("coco", coco(tmp_path))
    assert dataset.classes == ("ant", "cat", "bee")  # by their ids
    assert objects(dataset, 0) == [[0, 0, 1, 1, 2, 0]]
    assert objects(dataset, 1) == [[0.975, 0.95, 1, 1, 0, 0]]
    both = torch.cat([dataset.train.labels, dataset.calibration.labels])
    assert sorted(there(both).sum(1).tolist()) == [0, 1, 2]
    assert dataset.notes == ()


def test_boxes_of_pascal_voc_count_from_one_with_both_ends_inside(tmp_path: Path) -> None:
    first, second = load("coco", coco(tmp_path / "coco")), load("voc", voc(tmp_path / "voc"))
    assert second.classes == ("ant", "bee", "cat")
    order = torch.tensor([second.classes.index(name) for name in first.classes])
    wanted = first.tests["test"].labels.clone()
    wanted[..., CLASS] = order[wanted[..., CLASS].long()].float()
    assert torch.equal(second.tests["test"].labels, wanted)


def test_classes_may_be_listed(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bee\nfly\nant\ncat\n")
    dataset = load("coco", coco(tmp_path), classes=tmp_path / "classes.txt")
    assert dataset.classes == ("bee", "fly", "ant", "cat")
    assert objects(dataset, 0)[0][CLASS] == 0


def test_what_is_a_crowd_or_difficult_is_ignored(tmp_path: Path) -> None:
    def crowd(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1

    first = load("coco", coco(tmp_path / "coco", crowd))
    hard = "<difficult>1</difficult></object>"
    second = load("voc", voc(tmp_path / "voc", lambda text: text.replace("</object>", hard)))
    assert [objects(first, image)[0][IGNORED] for image in (0, 1)] == [1, 0]
    assert [objects(second, image)[0][IGNORED] for image in (0, 1)] == [1, 1]


def test_photos_are_stretched_or_whole_with_a_border(tmp_path: Path) -> None:
    """A photo of 40 x 20 in 32 x 32; what lies where its box says is the same photo."""
    path = coco(tmp_path)
    stretched, padded = load("coco", path), load("coco", path, aspect="pad", background=[9, 8, 7])
    photo = Image.open(path / "test" / "images" / "x.png")
    wide, tall = (one.tests["test"].pixels(torch.tensor([0]))[0] for one in (stretched, padded))
    by = Image.Resampling.BILINEAR
    for pixels, size in ((wide, (32, 32)), (tall[:, 8:24], (32, 16))):
        wanted = photo.resize((size[0], HEIGHT), by).resize(size, by)
        assert pixels.permute(1, 2, 0).numpy().tobytes() == wanted.tobytes()
    assert tall[:, 0, 0].tolist() == tall[:, -1, -1].tolist() == [9, 8, 7]
    assert objects(padded, 0) == [[0, 0.25, 1, 0.75, 2, 0]]
    assert stretched.sha256 != padded.sha256


def test_images_decoded_in_one_way_are_not_taken_for_another(tmp_path: Path) -> None:
    path, cache = coco(tmp_path / "photos"), tmp_path / "cache"
    found = []
    for aspect in ("stretch", "pad"):
        config = CocoData.model_validate({"path": path, "calibration_images": 1, "aspect": aspect})
        pixels = boxes_dataset(config, SHAPE, 0, cache).tests["test"].pixels(torch.tensor([0]))
        found.append(pixels)
        assert any(place.exists() for place in box_places(config, SHAPE, cache))
    assert not torch.equal(*found)


def test_calibration_images_need_no_annotations(tmp_path: Path) -> None:
    path = coco(tmp_path)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    config = CocoData.model_validate(
        {
            "test": {"test": path / "test"},
            "calibration": path / "train" / "images",
            "classes": tmp_path / "classes.txt",
            "calibration_images": 3,
        }
    )
    dataset = boxes_dataset(config, SHAPE, 0, None)
    assert (len(dataset.train), len(dataset.calibration)) == (0, 3)
    assert box_classes(config) == ("ant", "bee", "cat")


def box(sides: list[float]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][1]["bbox"] = sides

    return change


def of(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][1][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (box([30, 5, 20, 5]), r"1 box reaches beyond its image, annotation 1 in y\.png: \[30, 5\]"),
        (box([-3, 5, 20, 5]), r"to \[17, 10\] of 40 x 20; correct it"),
        (box([3, 5, 0, 5]), r"1 box has no area, annotation 1 in y\.png"),
        (of("image_id", 5), r"1 annotation is of an unknown image, annotation 1: image_id 5"),
        (of("category_id", 4), r"unknown category, .*category_id 4, and there are 3, 7, 90"),
        (of("bbox", [1, 2]), r"1 annotation has no box, annotation 1; it must hold images"),
        (lambda c: c["images"].pop(), r"data\.test\.test: 1 image has no annotation in .*y\.png"),
        (lambda c: c.pop("images"), r"cannot be read \(KeyError: 'images'\)"),
        (lambda c: c["images"].append(c["images"][0] | {"id": 1}), r"lists the image x\.png more"),
        (
            lambda c: c["images"].append(c["images"][0] | {"id": 1, "file_name": "z.png"}),
            r"1 of 3 annotated images are not in .*such as z\.png",
        ),
        (lambda c: c["categories"][2].update(name="wasp"), r"objects of 'wasp', and the 3 classes"),
        (lambda c: c["annotations"].clear(), r"data\.test\.test: none of its 2 images has an obj"),
    ],
)
def test_every_fault_has_a_line(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    path = coco(tmp_path, change)
    with pytest.raises(InputError, match=told) as caught:
        load("coco", path)
    assert "Traceback" not in str(caught.value)


def test_faults_of_a_kind_are_counted(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["bbox"] = [0, 0, 0, 0]

    with pytest.raises(InputError, match=r"2 boxes have no area, such as annotation 0 in x\.png"):
        load("coco", coco(tmp_path, change))


def test_a_box_may_reach_a_pixel_beyond_and_is_cut(tmp_path: Path) -> None:
    dataset = load("coco", coco(tmp_path, box([39, 19, 1.5, 1])))
    assert objects(dataset, 1)[0][2] == 1


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("<xmax>40", "<xmax>90", r"2 boxes reach beyond their images, such as object 1 in x\.xml"),
        ("<xmin>1<", "<xmin>41<", r"1 box has no area"),
        ("<name>bee", "<name>wasp", r"objects of 'wasp', and the 3 classes are 'ant', 'bee'"),
        ("<name>bee</name>", "", r"x\.xml: object 1 has no name"),
        (f"<width>{WIDTH}", "<width>none", r"size/width is 'none', no number"),
        ("<annotation>", "<!DOCTYPE x><annotation>", r"it declares entities"),
        ("</annotation>", "", r"x\.xml: cannot be read"),
    ],
)
def test_every_fault_of_xml_has_a_line(before: str, after: str, told: str, tmp_path: Path) -> None:
    path = voc(tmp_path, lambda text: text.replace(before, after))
    with pytest.raises(InputError, match=told):
        load("voc", path)


def test_folders_without_annotations(tmp_path: Path) -> None:
    path = voc(tmp_path)
    with pytest.raises(InputError, match=r"holds no JSON file; it must hold annotations\.json"):
        load("coco", path)
    for name in ("one.json", "two.json"):
        (path / "train" / name).write_text("{}")
    with pytest.raises(InputError, match=r"holds one\.json, two\.json; it must hold"):
        load("coco", path)
    (path / "test" / "Annotations").rename(path / "test" / "other")
    with pytest.raises(InputError, match="holds no folder Annotations or annotations"):
        load("voc", path)
    (path / "train" / "Annotations" / "b.xml").unlink()
    (path / "test" / "other").rename(path / "test" / "annotations")
    with pytest.raises(InputError, match=r"1 image has no annotation in .*JPEGImages/b\.png"):
        load("voc", path)


def test_a_file_of_another_name_does(tmp_path: Path) -> None:
    path = coco(tmp_path)
    (path / "train" / "annotations.json").rename(path / "train" / "instances.json")
    content = json.loads((path / "train" / "instances.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    (path / "train" / "instances.json").write_text(json.dumps(content))
    assert load("coco", path).classes == ("ant", "cat", "bee")


# What training does to images


def test_boxes_move_with_their_images() -> None:
    config = AugmentConfig(flip=True, shift=0.25, scale=0.2)
    images = torch.zeros(16, 1, 64, 64)
    images[:, :, 20:36, 24:44] = 1
    targets = torch.tensor([[24 / 64, 20 / 64, 44 / 64, 36 / 64, 1.0, 0.0]]).repeat(16, 1, 1)
    draws = draw_changes(16, config, torch.Generator().manual_seed(3))
    seen = augment_as(images, config, draws)
    for image, rows in zip(seen, moved(targets, config, draws), strict=True):
        ys, xs = (image[0] > 0.5).nonzero().unbind(1)
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 64
        assert torch.allclose(found, rows[0, :4], atol=1.1 / 64)
    assert len({tuple(rows[0].tolist()) for rows in moved(targets, config, draws)}) == 16


def test_what_is_moved_out_is_gone() -> None:
    config = AugmentConfig(shift=0.5)
    targets = torch.tensor([[[0.9, 0.9, 1.0, 1.0, 2.0, 0.0]]])
    there_now = there(moved(targets, config, torch.tensor([[0.5], [0.5], [0.5], [0.0], [0.0]])))
    assert not there_now.any()


def test_batches_of_a_training_move_boxes_with_images(tmp_path: Path) -> None:
    dataset = load("coco", coco(tmp_path))
    config = AugmentConfig(flip=True)
    generator = torch.Generator().manual_seed(0)
    images = dataset.tests["test"].take(torch.zeros(16, dtype=torch.int64))
    ((x, targets),) = batches(images, 16, dataset, augment_config=config, generator=generator)
    wanted = images.pixels(torch.arange(16)).float() / 255
    mirrored = (x[:, 0] != wanted[:, 0]).flatten(1).any(1)
    assert 0 < int(mirrored.sum()) < 16
    # The box is the whole image, so that nothing moves; the other image's box is in a corner.
    assert torch.equal(targets, images.labels)
    corner = dataset.tests["test"].take(torch.ones(16, dtype=torch.int64))
    generator.manual_seed(0)
    ((_, found),) = batches(corner, 16, dataset, augment_config=config, generator=generator)
    assert torch.allclose(found[mirrored][:, 0, 0], torch.zeros(1), atol=1e-6)
    assert torch.allclose(found[~mirrored][:, 0, 0], torch.full((1,), 0.975))


# Scenes of digits


def test_scenes_of_digits_have_boxes() -> None:
    config = DigitScenesData(train_images=3, test_images=4, calibration_images=2)
    shape = InputShape(channels=3, height=64, width=96)
    dataset = scene_boxes_dataset(config, shape)
    drawn = scene_sets(config, shape)["test"]
    assert dataset.classes == tuple("0123456789")
    assert [len(one) for one in (dataset.train, dataset.calibration)] == [3, 2]
    for rows, boxes in zip(dataset.tests["test"].labels, drawn.boxes, strict=True):
        found = rows[there(rows)]
        assert torch.allclose(found[:, :4] * torch.tensor([96, 64, 96, 64]), boxes[:, :4].float())
        assert found[:, CLASS].tolist() == boxes[:, 4].tolist()
        assert not found[:, IGNORED].any()
