"""Scenes of digits: where a digit lies is known to the pixel, and test digits are in no other."""

from __future__ import annotations

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitScenesData
from pipeline.recipe.input_shape import InputShape, square
from pipeline.tasks.images.digits import grey_digits
from pipeline.tasks.images.scenes import Scenes, digit_scenes, scene_sets

SHAPE = InputShape(height=64, width=96)
DIGITS = grey_digits()


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return digit_scenes(30, SHAPE, 5, DIGITS)


def test_boxes_and_masks_are_of_the_same_digits(scenes: Scenes) -> None:
    assert scenes.pixels.shape == (30, 3, 64, 96)
    assert scenes.masks.shape == (30, 64, 96)
    for mask, boxes in zip(scenes.masks, scenes.boxes, strict=True):
        assert 1 <= len(boxes) <= 6
        left = mask.clone()
        for x0, y0, x1, y1, digit in boxes.tolist():
            inside = mask[y0:y1, x0:x1]
            assert set(inside.unique().tolist()) <= {0, digit + 1}
            own = inside == digit + 1
            assert bool(own[0].any() and own[-1].any() and own[:, 0].any() and own[:, -1].any())
            left[y0:y1, x0:x1] = 0
        assert int(left.sum()) == 0, "every pixel of a digit lies in a box"


def test_boxes_overlap_nowhere(scenes: Scenes) -> None:
    for boxes in scenes.boxes:
        for row, one in enumerate(boxes.tolist()):
            for two in boxes[row + 1 :].tolist():
                apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
                assert apart


def test_digits_stand_out(scenes: Scenes) -> None:
    for pixels, mask in zip(scenes.pixels.float(), scenes.masks, strict=True):
        bright = pixels.mean(0)
        assert bright[mask > 0].mean() > bright[mask == 0].mean() + 30


def test_more_scenes_leave_the_first_ones_as_they_were(scenes: Scenes) -> None:
    few = digit_scenes(3, SHAPE, 5, DIGITS)
    assert torch.equal(few.pixels, scenes.pixels[:3])
    assert torch.equal(few.masks, scenes.masks[:3])
    other = digit_scenes(3, SHAPE, 6, DIGITS)
    assert not torch.equal(few.pixels, other.pixels)


def test_a_recipe_has_three_sets_and_test_digits_are_of_their_own() -> None:
    config = DigitScenesData(train_images=4, calibration_images=3, test_images=2)
    sets = scene_sets(config, square(32))
    assert {name: len(one.boxes) for name, one in sets.items()} == {
        "train": 4,
        "calibration": 3,
        "test": 2,
    }
    assert torch.equal(sets["test"].masks, scene_sets(config, square(32))["test"].masks)


def test_a_small_canvas_is_refused() -> None:
    with pytest.raises(InputError, match=r"model.input_size: got 24 x 24; digit_scenes takes"):
        digit_scenes(1, square(24), 0, DIGITS)
