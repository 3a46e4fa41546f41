"""Enlarging and making smaller, by operations that every runtime has in int8."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, image_of
from pipeline.networks.lowering.values import Value, shape_of

aten = torch.ops.aten


def nearest(
    b: Builder,
    x: Value,
    output_size: Sequence[Any] | None = None,
    scale_factors: Any = None,
    *_: object,
) -> Value:
    """Each pixel several times, or the first of every two, three, ... pixels.

    before: y = upsample_nearest(x), twice the size
    after:  the same

    before: y = upsample_nearest(x), half the size
    after:  y = x[:, :, ::2, ::2]

    Raises:
        Unsupported: the sizes are no multiples of each other.
    """
    return _picked(b, x, output_size, scale_factors, lambda smaller: 0)


def nearest_exact(
    b: Builder,
    x: Value,
    output_size: Sequence[Any] | None = None,
    scale_factors: Any = None,
    *_: object,
) -> Value:
    """As `nearest`, but what becomes smaller keeps the middle pixels.

    Raises:
        Unsupported: the sizes are no multiples of each other.
    """
    return _picked(b, x, output_size, scale_factors, lambda smaller: smaller // 2)


def _picked(
    b: Builder, x: Value, output_size: Any, scale_factors: Any, first: Callable[[int], int]
) -> Value:
    image = image_of(x)
    if (spread := _of_one_pixel(b, image, output_size, scale_factors)) is not None:
        return spread
    larger, smaller = _factors(image, output_size, scale_factors)
    if larger > 1:
        return _repeated(b, image, larger)
    if smaller == 1:
        return image
    rows = b.call(aten.slice.Tensor, image, 2, first(smaller), 2**62, smaller)
    return b.call(aten.slice.Tensor, rows, 3, first(smaller), 2**62, smaller)


def bilinear(
    b: Builder,
    x: Value,
    output_size: Sequence[Any] | None,
    align_corners: bool,
    scale_factors: Any = None,
    *_: object,
) -> Value:
    """Weighted means of neighbouring pixels; those at the edge are repeated outside.

    before: y = upsample_bilinear(x), twice the size
    after:  the same

    before: y = upsample_bilinear(x), half the size
    after:  y = conv(x, 1 / 4), stride 2, one group a channel

    before: y = upsample_bilinear(x), of one pixel
    after:  y = upsample_nearest(x)

    Raises:
        Unsupported: the sizes are no multiples of each other, or corners are aligned.
    """
    image = image_of(x)
    if (spread := _of_one_pixel(b, image, output_size, scale_factors)) is not None:
        return spread
    larger, smaller = _factors(image, output_size, scale_factors)
    if align_corners and (larger, smaller) != (1, 1):
        raise Unsupported(
            "a bilinear resizing with align_corners, whose weights differ from pixel to pixel; "
            "give it align_corners=False"
        )
    if larger > 1:
        size = [side * larger for side in shape_of(image)[1:]]
        return b.call(aten.upsample_bilinear2d.default, image, size, False)
    if smaller > 1:
        channels = shape_of(image)[0]
        line = _middle(smaller)
        weight = (line[:, None] * line).expand(channels, 1, smaller, smaller)
        node = b.constant("resize.weight", weight.clone())
        return conv(b, image, node, stride=[smaller, smaller], groups=channels)
    return image


def _repeated(b: Builder, image: fx.Node, rows: int, columns: int | None = None) -> fx.Node:
    """Every pixel so many times on each axis."""
    _, height, width = shape_of(image)
    size = [height * rows, width * (columns or rows)]
    return b.call(aten.upsample_nearest2d.default, image, size)


def _of_one_pixel(
    b: Builder, image: fx.Node, output_size: Sequence[Any] | None, scales: Sequence[float] | None
) -> fx.Node | None:
    """An image of one pixel in any size: all of it is that pixel, however it is enlarged."""
    if shape_of(image)[1:] != (1, 1):
        return None
    rows, columns = _wanted(image, output_size, scales)
    return image if rows == columns == 1 else _repeated(b, image, rows, columns)


def _middle(factor: int) -> Tensor:
    """What the middle of `factor` pixels takes of each: of one, or of two alike."""
    line = torch.zeros(factor)
    line[(factor - 1) // 2] += 0.5
    line[factor // 2] += 0.5
    return line


def _factors(
    image: fx.Node, output_size: Sequence[Any] | None, scales: Sequence[float] | None
) -> tuple[int, int]:
    """How many times larger and how many times smaller an image becomes; one of them is 1.

    Raises:
        Unsupported: neither is a whole number, or height and width differ.
    """
    _, *sizes = shape_of(image)
    wanted = _wanted(image, output_size, scales)
    pairs = list(zip(sizes, wanted, strict=True))
    for larger, smaller in ((wanted[0] // sizes[0], 1), (1, sizes[0] // max(wanted[0], 1))):
        if all(new * smaller == old * larger and larger * smaller for old, new in pairs):
            return larger, smaller
    raise Unsupported(
        f"a resizing of {sizes} to {wanted}; height and width may grow or shrink by one whole "
        "number; change model.input_size so that they do"
    )


def _wanted(
    image: fx.Node, output_size: Sequence[Any] | None, scales: Sequence[float] | None
) -> list[int]:
    """Height and width after a resizing."""
    if output_size is not None:
        return [int(size) for size in output_size]
    sizes = zip(shape_of(image)[1:], scales or (1.0, 1.0), strict=True)
    return [math.floor(size * scale) for size, scale in sizes]
