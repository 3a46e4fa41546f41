"""Images of any height and width, coloured or grey."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import InputShape, square
from pipeline.recipe.resnest import ResNeStModel
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images.augment import augment_as
from pipeline.tasks.images.load import load_dataset
from pipeline.tasks.images.pixels import decode, grey
from pipeline.tasks.images.preparation import Preparation, covering, margin_of

WIDE = InputShape(height=40, width=56)


def picture(height: int, width: int) -> tuple[Image.Image, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image, content = Image.fromarray(noise), io.BytesIO()
    image.save(content, "png")
    return image, content.getvalue()


def test_a_recipe_says_height_and_width() -> None:
    model = ResNeStModel(name="resnest14", stem="small", input_size=[40, 56], channels=1)
    assert model.input_shape.batch(2) == (2, 1, 40, 56)
    assert ResNeStModel(name="resnest14", input_size=[64, 64]).input_size == 64


def test_sizes_keep_the_proportion() -> None:
    assert WIDE.scaled(20).batch(1) == (1, 3, 20, 28)
    assert WIDE.scaled(30).batch(1) == (1, 3, 30, 42)


@pytest.mark.parametrize("size", [(90, 70), (70, 90), (40, 56), (1, 300)])
def test_an_image_is_scaled_to_the_least_that_covers(size: tuple[int, int]) -> None:
    height, width = covering(*size, WIDE)
    assert height >= WIDE.height
    assert width >= WIDE.width
    assert height == WIDE.height or width == WIDE.width


def test_a_photo_of_the_right_size_stays_as_it_is() -> None:
    image, content = picture(40, 56)
    found = decode(content, Path("a.png"), Preparation(shape=WIDE))
    assert np.array_equal(found.transpose(1, 2, 0), np.asarray(image))
    assert decode(picture(90, 70)[1], Path("a.png"), Preparation(shape=WIDE)).shape == (3, 40, 56)


def test_grey_is_pillows() -> None:
    image, content = picture(48, 48)
    found = decode(content, Path("a.png"), Preparation(shape=square(48, channels=1)))
    wanted = np.asarray(image.convert("L"))[None]
    assert np.array_equal(found, wanted)
    planes = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    assert np.array_equal(grey(planes).numpy(), wanted)
    assert not np.array_equal(grey(planes.flip(0)).numpy(), wanted)


def test_margins_keep_the_share_along_both_sides() -> None:
    assert margin_of(InputShape(height=224, width=448), 0.875) == (16, 32)


def test_digits_come_in_the_shape_that_is_asked_for() -> None:
    shape = InputShape(channels=1, height=40, width=56)
    found = load_dataset(DigitsData(), shape)
    assert found.train.pixels(torch.arange(2)).shape == shape.batch(2)
    assert (len(found.mean), len(found.std)) == (1, 1)
    coloured = load_dataset(DigitsData(), WIDE).train.pixels(torch.arange(2))
    assert torch.equal(found.train.pixels(torch.arange(2)), coloured[:, :1])


def test_a_quarter_turn_keeps_pixels_square() -> None:
    """What lies to the right of the middle comes to lie as many pixels above or below it."""
    x = torch.zeros(1, 1, 41, 81)
    x[0, 0, 20, 50] = 1.0
    config = AugmentConfig(rotate_deg=90.0)
    draws = torch.full((5, 1), 0.5)
    draws[1] = 1.0
    turned = augment_as(x, config, draws)[0, 0]
    row, column = divmod(int(turned.argmax()), 81)
    assert (abs(row - 20), column) == (10, 40)
