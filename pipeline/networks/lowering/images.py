"""What rules need of their operands: an image, one number a channel, an affine map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.values import Stacked, Value, Viewed, is_flat, shape_of

aten = torch.ops.aten


def conv(
    b: Builder,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    groups: int = 1,
) -> fx.Node:
    """Add a convolution."""
    arguments = ([*stride], [*padding], [1, 1], groups)
    return b.call(aten.conv2d.default, x, weight, bias, *arguments)


def affine(b: Builder, x: fx.Node, name: str, factor: Any, shift: Any = 0.0) -> fx.Node:
    """`factor * x + shift`, one number for all channels or for each.

    after:  x -> conv(x, factor, shift), one group a channel, its weights constants
    """
    channels = shape_of(x)[0]
    weight, bias = (_for_each(value, channels) for value in (factor, shift))
    weight_node = b.constant(f"{name}.weight", weight[:, None, None, None])
    bias_node = b.constant(f"{name}.bias", bias) if bias.any() else None
    return conv(b, x, weight_node, bias_node, groups=channels)


def _for_each(value: Any, channels: int) -> Tensor:
    given = torch.as_tensor(value, dtype=torch.float32).detach().reshape(-1)
    return given.expand(channels).clone()


def part_of(b: Builder, x: fx.Node, axis: int, begin: int, end: int, step: int = 1) -> fx.Node:
    """Cut an image along one axis; all of it is the image itself."""
    if (begin, end, step) == (0, shape_of(x)[axis - 1], 1):
        return x
    return b.call(aten.slice.Tensor, x, axis, begin, end, step)


def image_of(value: object) -> fx.Node:
    """The image that a value is.

    Raises:
        Unsupported: it is none.
    """
    if isinstance(value, fx.Node):
        if len(value.meta["val"].shape) != 4:
            raise Unsupported(f"reads a tensor of {len(value.meta['val'].shape)} axes, no image")
        return value
    if isinstance(value, Viewed):
        raise Unsupported(
            f"reads a tensor of shape (batch, {_text(value.shape)}), which is no image"
        )
    raise Unsupported("reads a stack of images" if isinstance(value, Stacked) else "reads no image")


def each(value: Value, function: Callable[[fx.Node], fx.Node]) -> Value:
    """What works number by number, on an image, a flat vector or each image of a stack.

    before: y = f(flatten(x))
    after:  y = flatten(f(x))

    Raises:
        Unsupported: the numbers are read in another order.
    """
    if isinstance(value, Stacked):
        return Stacked(images=tuple(map(function, value.images)))
    if isinstance(value, Viewed):
        return Viewed(image=function(value.image), shape=value.shape, moves=value.moves)
    return function(image_of(value))


def pixel(value: Value) -> fx.Node | None:
    """The image (batch, channels, 1, 1) behind a flat vector; None where it is none."""
    if is_flat(value):
        assert isinstance(value, Viewed)
        return value.image if shape_of(value.image)[1:] == (1, 1) else None
    return None


def _text(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
