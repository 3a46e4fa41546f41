"""What moves numbers and computes nothing: views, permutations, slices, padding.

Views are held back, and become an operation only where an image comes out of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, image_of, part_of, pixel
from pipeline.networks.lowering.pools import cut_out
from pipeline.networks.lowering.sides import beside
from pipeline.networks.lowering.stacks import stacked
from pipeline.networks.lowering.values import (
    Move,
    Pooled,
    Stacked,
    Value,
    Viewed,
    keeps_order,
    shape_of,
    viewed,
)

aten = torch.ops.aten


def moved(b: Builder, x: Value, move: Move) -> Value:
    """A value whose numbers are read in another shape or order; an image where it is one again.

    before: y = flatten(x);  z = y.reshape(batch, channels, height, width)
    after:  z = x
    """
    if isinstance(x, Stacked):
        x = joined(b, x)
    if isinstance(x, Pooled):
        x = cut_out(b, x)
    return settled(b, viewed(x).then(move))


def joined(b: Builder, x: Stacked) -> Viewed:
    """The images of a stack as one, read as a stack."""
    image = beside(b, x.images, 1)
    shape = (len(x.images), *shape_of(x.images[0]))
    return viewed(image).then(lambda t: t.reshape(1, *shape))


def settled(b: Builder, view: Viewed) -> Value:
    """The image that a view is, by the operation that moves its numbers so; else the view.

    Raises:
        Unsupported: it has the axes of an image, and no operation makes it.
    """
    if len(view.shape) != 3:
        return view
    before = shape_of(view.image)
    if view.shape == before and keeps_order(view):
        return view.image
    if before[1:] == (1, 1) and view.shape[1:] == (1, 1) and keeps_order(view):
        return view.image
    if view.shape[1:] == before[1:] and (channels := _channels(view)) is not None:
        return permuted(b, view.image, channels)
    if (factor := _factor(before, view.shape)) is not None:
        return to_depth(b, view, factor)
    if (factor := _factor(view.shape, before)) is not None:
        return to_space(b, view, factor)
    return view


def _channels(view: Viewed) -> list[int] | None:
    """Which channel of the image is which of the view, where every pixel stays in its place."""
    places = view.order()
    pixels = math.prod(view.shape[1:])
    first = places[:, 0, 0] // pixels
    expected = first[:, None, None] * pixels + torch.arange(pixels).reshape(view.shape[1:])
    return first.tolist() if bool((places == expected).all()) else None


def permuted(b: Builder, image: fx.Node, channels: Sequence[int]) -> fx.Node:
    """Channels in another order.

    before: y = x.reshape(batch, g, c, height, width).transpose(1, 2).reshape(...)
    after:  the same, in three operations

    before: y = x[:, channels]
    after:  y = conv(x, one 1 in every row)
    """
    count = len(channels)
    for groups in range(2, count):
        if count % groups == 0:
            order = torch.arange(count).reshape(groups, -1).t().reshape(-1).tolist()
            if order == list(channels):
                return channel_shuffle(b, image, groups)
    weight = torch.zeros(count, shape_of(image)[0], 1, 1)
    weight[range(count), list(channels)] = 1.0
    return conv(b, image, b.constant("permuted.weight", weight))


def _factor(large: Sequence[int], small: Sequence[int]) -> int | None:
    """By how much each side of `large` is that of `small`, whose channels are the square of it."""
    factor = large[1] // small[1] if small[1] else 0
    fits = factor > 1 and tuple(small) == (
        large[0] * factor**2,
        *(side / factor for side in large[1:]),
    )
    return factor if fits else None


def to_depth(b: Builder, view: Viewed, factor: int) -> Value:
    """Blocks of pixels as channels, in any order, are a convolution of ones.

    before: y = pixel_unshuffle(x, r)
    after:  y = conv(x, one 1 in every kernel), kernel and stride r

    Raises:
        Unsupported: the numbers move otherwise.
    """
    channels, height, width = shape_of(view.image)
    first = view.order()[:, 0, 0]
    source, row, column = first // (height * width), first // width % height, first % width
    if int(max(row.max(), column.max())) >= factor:
        raise Unsupported("a reshape that is no space-to-depth")
    weight = torch.zeros(view.shape[0], channels, factor, factor)
    weight[torch.arange(view.shape[0]), source, row, column] = 1.0
    blocks = torch.arange(height * width).reshape(1, 1, height, width).double()
    made = torch.nn.functional.conv2d(
        torch.arange(channels).reshape(1, -1, 1, 1) * height * width + blocks,
        weight.double(),
        stride=factor,
    )
    if not bool((made[0].long() == view.order()).all()):
        raise Unsupported("a reshape that is no space-to-depth")
    kernel = b.constant("to_depth.weight", weight)
    return conv(b, view.image, kernel, stride=(factor, factor))


def to_space(b: Builder, view: Viewed, factor: int) -> Value:
    """Channels as blocks of pixels, in the order of pixel_shuffle.

    Raises:
        Unsupported: in another order.
    """
    shape = shape_of(view.image)
    places = torch.arange(math.prod(shape)).reshape(1, *shape)
    expected = torch.nn.functional.pixel_shuffle(places, factor)[0]
    if not bool((expected == view.order()).all()):
        raise Unsupported("a reshape that is no depth-to-space")
    return b.call(aten.pixel_shuffle.default, view.image, factor)


def reshape(b: Builder, x: Value, node: fx.Node) -> Value:
    """view, reshape, flatten, unsqueeze, squeeze: the shape is that of the old operation."""
    shape = shape_of(node)

    def to_shape(t: Tensor) -> Tensor:
        return t.reshape(1, *shape)

    if isinstance(x, Pooled):
        return replace(x, vector=True) if len(shape) == 1 else moved(b, x, to_shape)
    pixels = pixel(x)
    if pixels is not None and shape == shape_of(pixels):
        return pixels
    return moved(b, x, to_shape)


def permute(b: Builder, x: Value, dims: Sequence[int]) -> Value:
    """Axes in another order; the batch stays first.

    Raises:
        Unsupported: the batch moves.
    """
    order = [dim % len(dims) for dim in dims]
    if order[0] != 0:
        raise Unsupported("a permutation that moves the batch")
    return moved(b, x, lambda t: t.permute(order))


def transpose(b: Builder, x: Value, dim0: int, dim1: int, rank: int) -> Value:
    """Two axes exchanged."""
    order = list(range(rank))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(b, x, order)


def pixel_unshuffle(b: Builder, x: Value, downscale_factor: int) -> Value:
    """As `to_depth`."""
    return moved(b, x, lambda t: torch.nn.functional.pixel_unshuffle(t, downscale_factor))


def pixel_shuffle(b: Builder, x: Value, upscale_factor: int) -> Value:
    """Stays."""
    return b.call(aten.pixel_shuffle.default, image_of(x), upscale_factor)


def channel_shuffle(b: Builder, x: Value, groups: int) -> fx.Node:
    """Channels change places in three operations that move numbers.

    before: y = channel_shuffle(x, g)
    after:  y = x.reshape(batch, g, c, height, width).transpose(1, 2).reshape(batch, ...)
    """
    image = image_of(x)
    channels, height, width = shape_of(image)
    apart = [-1, groups, channels // groups, height, width]
    made = b.call(aten.reshape.default, image, apart)
    made = b.call(aten.transpose.int, made, 1, 2)
    return b.call(aten.reshape.default, made, [-1, channels, height, width])


def cat(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Images side by side; one stays what it is.

    before: y = cat(flatten(x1), flatten(x2)), of one pixel each
    after:  y = flatten(cat(x1, x2))
    """
    if len(tensors) == 1:
        return tensors[0]
    pixels = [pixel(value) for value in tensors]
    if all(one is not None for one in pixels) and dim in (1, -1):
        image = beside(b, [one for one in pixels if one is not None], 1)
        return viewed(image).then(lambda t: t.flatten(1))
    images = [image_of(value) for value in tensors]
    axis = dim % 4
    if axis == 0:
        raise Unsupported("a concatenation along the batch")
    return beside(b, images, axis)


def cut(b: Builder, x: Value, dim: int, start: int, end: int, step: int = 1) -> Value:
    """A part of an image along one axis; all of it is the image itself."""
    if isinstance(x, Viewed) and (
        dim == 0 or ((start, step) == (0, 1) and end >= x.shape[dim - 1])
    ):
        return x  # as indexing writes it for every axis that it leaves alone
    vector = pixel(x)
    if vector is not None and dim in (1, -1):
        part = cut(b, vector, 1, start, end, step)
        return viewed(image_of(part)).then(lambda t: t.flatten(1))
    image = image_of(x)
    axis = dim % 4
    if axis == 0:
        return image
    size = shape_of(image)[axis - 1]
    begin, stop = (min(max(v + size if v < 0 else v, 0), size) for v in (start, end))
    return part_of(b, image, axis, begin, stop, step)


def split(b: Builder, x: Value, sizes: Sequence[int], dim: int) -> list[Value]:
    """Parts of an image are slices.

    before: y, z = split(x, [4, 2], 1)
    after:  y = x[:, 0:4];  z = x[:, 4:6]
    """
    if isinstance(x, Viewed | Stacked) and dim == 1 and pixel(x) is None:
        images = stacked(b, x).images
        if list(sizes) != [1] * len(images):
            raise Unsupported("a stack of images split into parts of several")
        return [Stacked(images=(image,)) for image in images]
    parts, start = [], 0
    for size in sizes:
        parts.append(cut(b, x, dim, start, start + size))
        start += size
    return parts


def equal_parts(x: Any, size: int, dim: int) -> list[int]:
    """Sizes of the parts that `split` by one size gives."""
    whole = int(x.meta["val"].shape[dim])
    return [min(size, whole - start) for start in range(0, whole, size)]


def chunks(x: Any, count: int, dim: int) -> list[int]:
    """Sizes of the parts that `chunk` gives."""
    return equal_parts(x, -(-int(x.meta["val"].shape[dim]) // count), dim)


def pad(
    b: Builder, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Value:
    """Padding with zeros stays; that with what lies at the edge is cut out and put beside it.

    before: y = pad(x, (1, 1, 0, 0), "reflect")
    after:  y = cat(x[..., 1:2], x, x[..., -2:-1])

    Raises:
        Unsupported: padding with another number, or of other axes.
    """
    image = image_of(x)
    left, right, top, bottom = (*pad, 0, 0, 0, 0)[:4]
    if mode == "constant":
        if value not in (None, 0):
            raise Unsupported(f"padding with {value}; it may be 0")
        if not any(pad):
            return image
        if any(pad[4:]):
            raise Unsupported("padding of channels")
        return b.call(aten.constant_pad_nd.default, image, [left, right, top, bottom], 0.0)
    for axis, before, after in ((2, top, bottom), (3, left, right)):
        image = _edges(b, image, axis, before, after, mode)
    return image


def _edges(b: Builder, image: fx.Node, axis: int, before: int, after: int, mode: str) -> fx.Node:
    """An axis with rows around it, each a copy of one inside."""
    size = shape_of(image)[axis - 1]
    places: Tensor = torch.arange(size).double().reshape(1, 1, size)
    rows = torch.nn.functional.pad(places, (before, after), mode)[0, 0].long().tolist()
    if rows == list(range(size)):
        return image
    ends = [b.call(aten.slice.Tensor, image, axis, row, row + 1) for row in rows[:before]]
    starts = rows[before + size :]
    others = [b.call(aten.slice.Tensor, image, axis, row, row + 1) for row in starts]
    return beside(b, [*ends, image, *others], axis)
