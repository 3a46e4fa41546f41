"""Stacks of images, which split attention and selective kernels choose between."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import affine, image_of
from pipeline.networks.lowering.values import Stacked, Value, Viewed, keeps_order, shape_of

aten = torch.ops.aten


def stacked(b: Builder, value: Value) -> Stacked:
    """A value of five axes (batch, parts, channels, height, width) as a stack of images.

    before: y = x.reshape(batch, 2, channels / 2, height, width)
    after:  y = stack(x[:, : channels / 2], x[:, channels / 2 :])

    Raises:
        Unsupported: it is no stack.
    """
    if isinstance(value, Stacked):
        return value
    if isinstance(value, Viewed) and len(value.shape) == 4 and keeps_order(value):
        parts, channels, *sizes = value.shape
        if (parts * channels, *sizes) == shape_of(value.image):
            starts = range(0, parts * channels, channels)
            images = [
                b.call(aten.slice.Tensor, value.image, 1, start, start + channels)
                for start in starts
            ]
            return Stacked(images=tuple(images))
    raise Unsupported("a tensor of five axes that is no stack of images")


def stack(b: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Images stacked behind the batch.

    Raises:
        Unsupported: along another axis.
    """
    if dim != 1:
        raise Unsupported(f"images stacked along axis {dim}; it may be 1, behind the batch")
    return Stacked(images=tuple(map(image_of, tensors)))


def softmax_of_stack(b: Builder, value: Value) -> Stacked:
    """A softmax over two images is a sigmoid of their difference.

    before: a, c = softmax(stack(x, y), 1)
    after:  a = sigmoid(x - y);  c = 1 - a

    Raises:
        Unsupported: over more than two.
    """
    images = stacked(b, value).images
    if len(images) == 1:
        raise Unsupported("a softmax over one image, which is always 1")
    if len(images) > 2:
        raise Unsupported(f"a softmax over {len(images)} images; it may be over two")
    first, second = images
    difference = b.call(aten.add.Tensor, first, affine(b, second, "negative", -1.0))
    share = b.call(aten.sigmoid.default, difference)
    return Stacked(images=(share, affine(b, share, "complement", -1.0, 1.0)))
