"""Images with masks: what is read, that it moves with its image, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitScenesData, MaskFolderData
from pipeline.recipe.input_shape import InputShape, square
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images.augment import augment_as, draw_changes, masks_as
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.masks import mask_places, masked_dataset, scenes_dataset
from pipeline.tasks.images.preparation import VOID
from tests.making import masks as making

SHAPE = InputShape(height=32, width=40)
SETS = {"train": 8, "test": 4}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return making.drawn(tmp_path / "data", SETS)


def load(root: Path, shape: InputShape = SHAPE, **keys: object) -> Dataset:
    given = {"path": root, "void": making.VOID, "calibration_images": 2} | keys
    return masked_dataset(MaskFolderData(**given), shape, 0, None)


def complaint(root: Path, **keys: object) -> str:
    with pytest.raises(InputError) as caught:
        load(root, **keys)
    return str(caught.value)


@pytest.mark.parametrize("palette", [True, False])
def test_masks_are_read_as_classes_without_void(tmp_path: Path, palette: bool) -> None:
    made = load(making.drawn(tmp_path, SETS, palette=palette))
    assert made.classes == ("ground", "red", "green")
    assert {name: len(images) for name, images in made.tests.items()} == {"test": 4}
    assert len(made.train) == 6
    assert len(made.calibration) == 2
    table = np.array([0, 1, VOID, 2], np.uint8)
    for row, mask in enumerate(made.tests["test"].labels):
        raw = np.asarray(Image.open(tmp_path / "test" / "masks" / f"{row:03d}.png"))
        assert np.array_equal(mask.numpy(), table[raw])


def test_a_void_beyond_the_list_leaves_all_classes(tmp_path: Path) -> None:
    made = load(making.drawn(tmp_path, SETS), void=None)
    assert made.classes == making.CLASSES
    assert int(made.train.labels.max()) == 3


@pytest.mark.parametrize("size", [(16, 20), (64, 64), (24, 40)])
def test_masks_are_scaled_and_cut_as_their_images(root: Path, size: tuple[int, int]) -> None:
    made = load(root, InputShape(height=size[0], width=size[1])).tests["test"]
    pixels = made.pixels(torch.arange(len(made))).float()
    assert made.labels.shape == (4, *size)
    assert pixels.shape == (4, 3, *size)
    red, green = (made.labels == 1, made.labels == 2)
    for found, channel in ((red, 0), (green, 1)):
        assert found.any()
        own = pixels.movedim(1, -1)[found]
        assert (own.argmax(-1) == channel).float().mean() > 0.95


def test_a_cache_gives_the_same_and_is_known_to_gc(root: Path, tmp_path: Path) -> None:
    config = MaskFolderData(path=root, void=making.VOID, calibration_images=2)
    plain, cache = load(root), tmp_path / "cache"
    first, second = (masked_dataset(config, SHAPE, 0, cache) for _ in range(2))
    assert plain.sha256 == first.sha256 == second.sha256
    assert torch.equal(first.train.labels, plain.train.labels)
    places = mask_places(config, SHAPE, cache)
    assert {place for place in cache.iterdir() if place.name[0] != "."} <= places
    # The same files with another void are other masks.
    assert masked_dataset(config.model_copy(update={"void": None}), SHAPE, 0, cache).classes == (
        making.CLASSES
    )


def test_another_mask_is_other_data(root: Path) -> None:
    before = load(root).sha256
    making.save_mask(root / "test" / "masks" / "000.png", np.zeros((32, 40), np.uint8))
    assert load(root).sha256 != before


def test_calibration_images_need_no_masks(root: Path, tmp_path: Path) -> None:
    images = root / "train" / "images"
    made = load(root, calibration=images)
    assert len(made.train) == 8
    assert len(made.calibration) == 2


def test_bad_data_gets_a_line(root: Path) -> None:
    folder = root / "test" / "masks"
    making.save_mask(folder / "000.png", np.zeros((32, 39), np.uint8))
    assert "test/masks/000.png: 39 x 32 pixels, and its image has 40 x 32" in complaint(root)
    making.save_mask(folder / "000.png", np.full((32, 40), 4, np.uint8))
    text = complaint(root)
    assert "test/masks/000.png: has class 4, and the classes are 0 to 3" in text
    assert len(text.splitlines()) == 1
    Image.new("RGB", (40, 32)).save(folder / "000.png")
    assert "pixels are of mode RGB; it must be a PNG with a palette" in complaint(root)
    (folder / "000.png").write_bytes(b"none")
    assert "cannot read image" in complaint(root)
    (folder / "000.png").rename(folder / "other.png")
    lines = complaint(root).splitlines()
    assert lines[0].startswith("data.test.test: 1 images without a mask in")
    assert "000.png" in lines[0]
    assert "1 masks without an image" in lines[1]
    assert "other.png" not in lines[0]


def test_folders_that_are_not_there_are_named(root: Path) -> None:
    (root / "classes.txt").unlink()
    assert "classes.txt: cannot be read" in complaint(root)
    assert "calibration_images: got 7" in complaint(making.drawn(root, {}), calibration_images=7)


def test_flip_and_shift_move_masks_to_the_pixel() -> None:
    config = AugmentConfig(flip=True, shift=0.3)
    draws = draw_changes(16, config, torch.Generator().manual_seed(1))
    masks = torch.randint(0, 11, (16, 24, 32), dtype=torch.uint8)
    moved = augment_as(masks[:, None].float(), config, draws)[:, 0]
    assert torch.equal(masks_as(masks, config, draws), moved.to(torch.uint8))
    assert not torch.equal(masks_as(masks, config, draws), masks)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(crop=(0.3, 1.0)),
        AugmentConfig(scale=0.3, rotate_deg=20.0),
        AugmentConfig(flip=True, shift=0.2, scale=0.2),
    ],
)
def test_masks_follow_every_change_of_their_images(config: AugmentConfig) -> None:
    """Scenes whose pixels are their masks: after any change they still must be."""
    made = scenes_dataset(DigitScenesData(train_images=12), square(64))
    levels = (made.train.labels > 0).to(torch.uint8) * 200
    from dataclasses import replace

    images = replace(made.train, source=levels[:, None].expand(-1, 3, -1, -1).contiguous())
    plain = replace(made, mean=(0.0,) * 3, std=(1.0,) * 3)
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    for x, masks in batches(images, 4, plain, augment_config=config, generator=generator):
        assert masks.dtype == torch.uint8
        found, wanted = x[:, 0] * 255 > 100, masks > 0
        assert wanted.any()
        both, either = (found & wanted).sum(), (found | wanted).sum()
        assert both / either > 0.93


def test_without_masks_labels_stay_and_draws_are_the_same() -> None:
    from pipeline.tasks.images.augment import random_parts, random_parts_of_both

    pixels = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    torch.manual_seed(0)
    alone = random_parts(pixels, (0.2, 0.8), square(32))
    torch.manual_seed(0)
    both, masks = random_parts_of_both(pixels, pixels[:, 0], (0.2, 0.8), square(32))
    assert torch.equal(alone, both)
    assert masks.shape == (3, 32, 32)
