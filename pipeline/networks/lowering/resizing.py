"""Enlarging and making smaller, by convolutions that every runtime has in int8.

Runtimes round a resizing of integers each in its own way, and some compute it in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, image_of
from pipeline.networks.lowering.shapes import pad
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
    after:  y = pixel_shuffle(conv(x, 1)), four output channels of a convolution to each channel

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
    larger, smaller = _factors(image, output_size, scale_factors)
    if larger > 1:
        return _shuffled(b, image, torch.ones(larger, 1), larger)
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
    after:  y = pixel_shuffle(conv(replicated(x), weights)), four output channels to each channel

    before: y = upsample_bilinear(x), half the size
    after:  y = conv(x, 1 / 4), stride 2, one group a channel

    Raises:
        Unsupported: the sizes are no multiples of each other, or corners are aligned.
    """
    image = image_of(x)
    larger, smaller = _factors(image, output_size, scale_factors)
    if align_corners and (larger, smaller) != (1, 1):
        raise Unsupported(
            "a bilinear resizing with align_corners, whose weights differ from pixel to pixel; "
            "give it align_corners=False"
        )
    if larger > 1:
        around = pad(b, image, (1, 1, 1, 1), "replicate")
        return _shuffled(b, image_of(around), _between(larger), larger)
    if smaller > 1:
        channels = shape_of(image)[0]
        line = _middle(smaller)
        weight = (line[:, None] * line).expand(channels, 1, smaller, smaller)
        node = b.constant("resize.weight", weight.clone())
        return conv(b, image, node, stride=[smaller, smaller], groups=channels)
    return image


def _shuffled(b: Builder, image: fx.Node, lines: Tensor, factor: int) -> fx.Node:
    """Every pixel of the larger image is computed as a channel of the smaller one.

    Args:
        b: the new graph.
        image: (batch, channels, height, width), with what the kernels need around it.
        lines: weights along one axis, (factor, kernel): a row for each place within a pixel.
        factor: how many times as many pixels there are on each axis.
    """
    channels = shape_of(image)[0]
    kernels = torch.einsum("iy,jx->ijyx", lines, lines).flatten(0, 1)  # row by row, as shuffled
    weight = b.constant("resize.weight", kernels.repeat(channels, 1, 1)[:, None].contiguous())
    made = conv(b, image, weight, groups=channels)
    return b.call(aten.pixel_shuffle.default, made, factor)


def _between(factor: int) -> Tensor:
    """What each of `factor` places within a pixel takes of the one before, it, and the next.

    A place's middle lies at (place + 1/2) / factor - 1/2 from the pixel's own.
    """
    away = (torch.arange(factor) + 0.5) / factor - 0.5
    before, after = (-away).clamp(min=0), away.clamp(min=0)
    return torch.stack([before, 1 - before - after, after], 1)


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
    if output_size is not None:
        wanted = [int(size) for size in output_size]
    else:
        wanted = [math.floor(n * s) for n, s in zip(sizes, scales or (1.0, 1.0), strict=True)]
    pairs = list(zip(sizes, wanted, strict=True))
    for larger, smaller in ((wanted[0] // sizes[0], 1), (1, sizes[0] // max(wanted[0], 1))):
        if all(new * smaller == old * larger and larger * smaller for old, new in pairs):
            return larger, smaller
    raise Unsupported(
        f"a resizing of {sizes} to {wanted}; height and width may grow or shrink by one whole "
        "number; change model.input_size so that they do"
    )
