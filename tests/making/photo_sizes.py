"""Photos of random sizes, and the preparations that they are swept with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe.input_shape import InputShape, square
from pipeline.tasks.images.preparation import Preparation

PREPARATIONS = {
    "square": Preparation(shape=square(32)),
    "bicubic": Preparation(shape=square(28), margin=(2, 2), interpolation="bicubic"),
    "wide": Preparation(shape=InputShape(height=24, width=40), margin=(3, 5)),
    "grey": Preparation(
        shape=InputShape(channels=1, height=40, width=24),
        interpolation="bicubic",
        background=(10, 200, 90),
    ),
}


def random_photos(count: int, most: int = 160) -> Iterator[NDArray[np.uint8]]:
    """Noise uint8 [H, W, 3] of sides from 1, among them photos a pixel off square, and long ones.

    Noise shows every pixel that is taken from elsewhere, and what is clipped.
    """
    draw = np.random.default_rng(0)
    for number in range(count):
        height, width = draw.integers(1, most, 2)
        if number % 5 == 0:
            width = height + number // 5 % 3 - 1 or 1
        if number % 25 == 1:
            height, width = draw.integers(1, 6), draw.integers(most, 3 * most)
        if number % 25 == 2:
            height, width = draw.integers(most, 3 * most), draw.integers(1, 6)
        levels = (0, 256) if number % 2 else (0, 2)
        noise = draw.integers(*levels, (height, width, 3))
        yield (noise if number % 2 else noise * 255).astype(np.uint8)
