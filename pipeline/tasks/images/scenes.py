"""Scenes of handwritten digits on a canvas: what lies where is known to the pixel.

    scenes = digit_scenes(100, square(96), seed=0, digits)
    scenes.pixels.shape     # (100, 3, 96, 96)
    scenes.masks[0].unique()  # 0 where no digit lies, else 1 to 10: the digit and one
    scenes.boxes[0]         # (digits, 5): left, top, right, bottom, digit

Every scene is drawn by a generator of its own, made of the seed and the scene's number, so that
more scenes leave the first ones as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.recipe.data import DigitScenesData
from pipeline.recipe.input_shape import InputShape
from pipeline.tasks.images.dataset import draw_stratified, others
from pipeline.tasks.images.digits import grey_digits

BACKGROUND = "background"
_LEAST_SIDE, _TEST_DIGITS = 32, 450
_SIDES = (0.2, 0.4)
"""Of a digit, as shares of the canvas's shorter side."""
_MOST_DIGITS = 6
_TRIES = 30
"""Places that are tried for a digit before it is left out, since all are taken."""
_INK = 0.35
"""From how much of a digit's ink on, of 1, a pixel is the digit's."""
_DARK, _LIGHT, _NOISE = 70, 130, 6.0
"""Levels of 255: the brightest background, the darkest digit, and the noise's deviation."""
_SETS = {"train": 0, "calibration": 1, "test": 2}

Digits = tuple[Tensor, Tensor]
"""Images (digits, 8, 8) of 0 to 16, and the digit of each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """N scenes.

    Attributes:
        pixels: uint8 [N, 3, H, W].
        masks: uint8 [N, H, W]: 0 is the background, and a digit's pixels are the digit and one.
        boxes: of each scene int64 [digits, 5]: left, top, right and bottom in pixels, the last two
            exclusive, and the digit. They hold a digit's pixels exactly and overlap nowhere.
    """

    pixels: Tensor
    masks: Tensor
    boxes: tuple[Tensor, ...]


def digit_scenes(count: int, shape: InputShape, seed: int, digits: Digits) -> Scenes:
    """Draw scenes of one to six digits.

    Args:
        count: of scenes.
        shape: of each; its channels do not matter.
        seed: the same gives the same scenes.
        digits: that are drawn.

    Raises:
        InputError: the shape is too small for a digit.
    """
    if shape.shorter < _LEAST_SIDE:
        raise InputError(
            f"model.input_size: got {shape}; digit_scenes takes sides of at least {_LEAST_SIDE}"
        )
    pixels = np.empty((count, 3, shape.height, shape.width), np.uint8)
    masks = np.zeros((count, shape.height, shape.width), np.uint8)
    boxes = []
    for row in range(count):
        random = np.random.default_rng([seed, row])
        boxes.append(_drawn(pixels[row], masks[row], random, digits))
    return Scenes(
        pixels=torch.from_numpy(pixels), masks=torch.from_numpy(masks), boxes=tuple(boxes)
    )


def scene_sets(config: DigitScenesData, shape: InputShape) -> dict[str, Scenes]:
    """The scenes of a recipe: train, calibration and test.

    Digits of test scenes are the test digits of `digits`; none of them is in another scene.
    """
    grey, labels = grey_digits()
    tested = draw_stratified(labels, _TEST_DIGITS, seed=0)
    rest = others(len(labels), tested)
    counts = {
        "train": config.train_images,
        "calibration": config.calibration_images,
        "test": config.test_images,
    }
    found = {}
    for name, seed in _SETS.items():
        rows = tested if name == "test" else rest
        found[name] = digit_scenes(counts[name], shape, seed, (grey[rows], labels[rows]))
    return found


def _drawn(
    canvas: NDArray[np.uint8], mask: NDArray[np.uint8], random: np.random.Generator, digits: Digits
) -> Tensor:
    """Draw a scene on a canvas [3, H, W] and its mask [H, W], and give its boxes."""
    height, width = mask.shape
    paint = np.empty(canvas.shape, np.float64)
    paint[...] = random.integers(0, _DARK + 1, (3, 1, 1))
    boxes: list[tuple[int, ...]] = []
    for _ in range(int(random.integers(1, _MOST_DIGITS + 1))):
        row = int(random.integers(0, len(digits[1])))
        side = round(random.uniform(*_SIDES) * min(height, width))
        colour = random.integers(_LIGHT, 256, (3, 1, 1)).astype(np.float64)
        ink = _enlarged(digits[0][row].numpy(), side)
        own = np.argwhere(ink >= _INK)
        (top, left), (bottom, right) = own.min(0), own.max(0) + 1
        place = _free_place((top, left, bottom, right), (side, height, width), boxes, random)
        if place is None:
            continue
        y, x = place
        digit = int(digits[1][row])
        part = np.s_[y : y + side, x : x + side]
        paint[:, part[0], part[1]] += ink * (colour - paint[:, part[0], part[1]])
        mask[part][ink >= _INK] = digit + 1
        boxes.append((x + left, y + top, x + right, y + bottom, digit))
    noise = random.normal(0, _NOISE, canvas.shape)
    canvas[...] = np.clip(np.rint(paint + noise), 0, 255)
    return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 5)


def _enlarged(grey: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """A digit of 8 x 8 as ink of 0 to 1, [side, side]."""
    image = Image.fromarray(np.rint(grey * 255 / 16).astype(np.uint8))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) / 255


def _free_place(
    own: tuple[int, int, int, int],
    sizes: tuple[int, int, int],
    boxes: list[tuple[int, ...]],
    random: np.random.Generator,
) -> tuple[int, int] | None:
    """Where a digit's square may begin, so that its box lies on no other; None if nowhere."""
    top, left, bottom, right = own
    side, height, width = sizes
    for _ in range(_TRIES):
        y, x = int(random.integers(0, height - side + 1)), int(random.integers(0, width - side + 1))
        if not any(
            x + left < box[2] and box[0] < x + right and y + top < box[3] and box[1] < y + bottom
            for box in boxes
        ):
            return y, x
    return None
