"""Pools, means and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, image_of, part_of
from pipeline.networks.lowering.values import Pooled, Value, Viewed, flat, shape_of
from pipeline.networks.rewrites import adds_windows

aten = torch.ops.aten
_MOST_WINDOWS = 64


def max_pool(
    b: Builder,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Value:
    """Max pooling stays."""
    both = (pair(v) for v in (kernel_size, stride or kernel_size, padding, dilation))
    return b.call(aten.max_pool2d.default, image_of(x), *both, ceil_mode)


def avg_pool(
    b: Builder,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """An average pool is a convolution with constant weights, which XNNPACK has in int8.

    before: y = avg_pool(x, k)
    after:  y = conv(x, 1 / k^2), one group a channel

    Raises:
        Unsupported: its windows are not all of one size.
    """
    image = image_of(x)
    kernel, strides, pads = (pair(v) for v in (kernel_size, stride or kernel_size, padding))
    if any(pads) and not count_include_pad:
        raise Unsupported(
            f"an average pool with padding {pads} that does not count, so that its windows are not "
            "of one size; give it count_include_pad=True, or no padding"
        )
    if ceil_mode and adds_windows(shape_of(image)[1:], kernel, strides, pads):
        raise Unsupported(
            f"an average pool whose ceil_mode adds windows that are not whole to an image of "
            f"{shape_of(image)[1:]}; change model.input_size, or leave ceil_mode out"
        )
    return _average(b, image, kernel, strides, pads, divisor_override or kernel[0] * kernel[1])


def _average(
    b: Builder,
    image: fx.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    divisor: int,
) -> fx.Node:
    channels = shape_of(image)[0]
    weight = b.constant("average.weight", torch.full((channels, 1, *kernel), 1.0 / divisor))
    return conv(b, image, weight, stride=strides, padding=pads, groups=channels)


def average_of_whole(
    b: Builder,
    image: fx.Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
) -> fx.Node:
    """The mean of every window, its padding counted."""
    return _average(b, image, kernel, strides, pads, kernel[0] * kernel[1])


def adaptive_avg_pool(b: Builder, x: Value, output_size: Sequence[int | None]) -> Value:
    """Windows of one size are an average pool; others are cut out one by one.

    before: y = adaptive_avg_pool(x, 1)
    after:  y = mean(x), over height and width

    before: y = adaptive_avg_pool(x, (2, 1)), of 3 x 1
    after:  y = cat(mean(x[0:2]), mean(x[1:3]))

    More windows than pixels wait for the linear layer behind them (`Pooled`).

    Raises:
        Unsupported: there would be too many windows.
    """
    image = image_of(x)
    sizes = shape_of(image)[1:]
    wanted = _windows_of(output_size, sizes)
    if wanted == list(sizes):
        return image
    if wanted == [1, 1]:
        return mean_of_image(b, image)
    if all(size % out == 0 for size, out in zip(sizes, wanted, strict=True)):
        kernel = [size // out for size, out in zip(sizes, wanted, strict=True)]
        return _average(b, image, kernel, kernel, (0, 0), kernel[0] * kernel[1])
    if wanted[0] * wanted[1] > sizes[0] * sizes[1]:
        return Pooled(image=image, windows=(wanted[0], wanted[1]))
    if wanted[0] * wanted[1] > _MOST_WINDOWS:
        raise Unsupported(
            f"an adaptive average pool of {sizes} to {wanted}, whose windows are not of one size; "
            "change model.input_size so that they are"
        )
    return _windows(b, image, wanted, partial(mean_of_image, b))


def adaptive_max_pool(
    b: Builder, x: Value, output_size: Sequence[int | None]
) -> list[Value | None]:
    """Windows of one size are a max pool.

    before: y = adaptive_max_pool(x, 1)
    after:  y = max_pool(x, the whole image)

    Raises:
        Unsupported: its windows are not of one size.
    """
    image = image_of(x)
    sizes = shape_of(image)[1:]
    wanted = _windows_of(output_size, sizes)
    if any(size % out for size, out in zip(sizes, wanted, strict=True)):
        raise Unsupported(f"an adaptive max pool of {sizes} to {wanted}, whose windows overlap")
    kernel = [size // out for size, out in zip(sizes, wanted, strict=True)]
    # The operation gives the places of the largest as well.
    return [b.call(aten.max_pool2d.default, image, kernel, kernel, [0, 0], [1, 1], False), None]


def _windows_of(output_size: Sequence[int | None], sizes: Sequence[int]) -> list[int]:
    """Windows of an adaptive pool on each axis; None stands for one a pixel."""
    axes = zip(output_size, sizes, strict=True)
    return [size if out is None else int(out) for out, size in axes]


def cut_out(b: Builder, pooled: Pooled) -> fx.Node | Viewed:
    """The windows of a pool one by one, for a reader that cannot take them into its weights.

    Raises:
        Unsupported: there are too many.
    """
    rows, columns = pooled.windows
    if rows * columns > _MOST_WINDOWS:
        raise Unsupported(
            f"an adaptive average pool of {shape_of(pooled.image)[1:]} to {list(pooled.windows)}, "
            "more windows than pixels, and no linear layer behind it; change model.input_size"
        )
    image = _windows(b, pooled.image, pooled.windows, partial(mean_of_image, b))
    return flat(image) if pooled.vector else image


def windows_as_matrix(size: int, count: int) -> torch.Tensor:
    """What every window of an adaptive average pool takes of every pixel: (count, size)."""
    matrix = torch.zeros(count, size)
    for index in range(count):
        begin, end = window(index, size, count)
        matrix[index, begin:end] = 1.0 / (end - begin)
    return matrix


def _windows(b: Builder, image: fx.Node, wanted: Sequence[int], pool: Any) -> fx.Node:
    """Every window on its own, as adaptive pools lay them, put together again."""
    height, width = shape_of(image)[1:]
    rows = []
    for row in range(wanted[0]):
        top, bottom = window(row, height, wanted[0])
        band = part_of(b, image, 2, top, bottom)
        cells = []
        for column in range(wanted[1]):
            left, right = window(column, width, wanted[1])
            cells.append(pool(part_of(b, band, 3, left, right)))
        rows.append(cells[0] if len(cells) == 1 else b.call(aten.cat.default, cells, 3))
    return rows[0] if len(rows) == 1 else b.call(aten.cat.default, rows, 2)


def window(index: int, size: int, count: int) -> tuple[int, int]:
    """Where one of `count` windows of an adaptive pool begins and ends, on an axis of `size`."""
    return index * size // count, -(-(index + 1) * size // count)


def mean_of_image(b: Builder, image: fx.Node) -> fx.Node:
    """The mean over height and width, kept as an image of one pixel."""
    if shape_of(image)[1:] == (1, 1):
        return image
    return b.call(aten.mean.dim, image, [2, 3], True)


def mean(
    b: Builder,
    x: Value,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: object = None,
) -> Value:
    """Means over height and width, in either spelling, and over channels.

    before: y = mean(x, (2, 3))
    after:  y = flatten(mean(x, (2, 3), keepdim))

    before: y = mean(x, 1, keepdim)
    after:  y = conv(x, 1 / channels)

    Raises:
        Unsupported: over other axes.
    """
    image = image_of(x)
    axes = sorted(axis % 4 for axis in (dim or range(4)))
    if axes == [2, 3]:
        found = mean_of_image(b, image)
        return found if keepdim else flat(found)
    if axes == [1] and keepdim:
        channels = shape_of(image)[0]
        weight = b.constant("mean.weight", torch.full((1, channels, 1, 1), 1.0 / channels))
        return conv(b, image, weight)
    raise Unsupported(f"a mean over axes {axes}; it may be over height and width, or over channels")


def pair(given: Sequence[int] | int) -> list[int]:
    """Height and width of what one number may stand for."""
    values = [given] if isinstance(given, int) else list(given)
    return [int(values[0]), int(values[-1])]
