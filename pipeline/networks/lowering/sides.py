"""What a concatenation puts side by side, so that one grid of integers serves all of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pipeline.networks.lowering.builder import Builder
from pipeline.networks.lowering.images import affine

aten = torch.ops.aten
_RELU = {aten.relu.default, aten.relu_.default}
_FIXED = {aten.sigmoid.default, aten.softmax.int, aten.tanh.default}
"""Whose results have a grid of their own, whatever they are."""
_KEEP = {
    *(aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mean.dim, aten.cat.default),
    *(aten.max_pool2d.default, aten.slice.Tensor, aten.dropout.default),
    *(aten.constant_pad_nd.default, aten.reshape.default, aten.transpose.int),
    *(aten.pixel_shuffle.default, aten.upsample_nearest2d.default),
    aten.upsample_bilinear2d.default,
}
"""Of numbers that are never negative these make none that are."""


def beside(b: Builder, images: Sequence[fx.Node], axis: int) -> fx.Node:
    """Put images side by side.

    TFLite and XNNPACK concatenate integers of one grid, which has to cover all inputs. One that is
    never negative would lose half of its steps beside others that are, and its ReLU would no longer
    be the end of its grid; the grid of a sigmoid is fixed. Such an input keeps its own grid, and is
    rounded to that of the others by an operation that every runtime has in int8:

    before: y = cat(relu(x), z)
    after:  y = cat(conv(relu(x), 1), z), one group a channel

    Args:
        b: the new graph.
        images: (batch, channels, height, width), of equal sizes but along `axis`.
        axis: 1, 2 or 3.
    """
    mixed = len({never_negative(b, one) for one in images}) > 1
    ready = [
        _again(b, one) if one.target in _FIXED or (mixed and never_negative(b, one)) else one
        for one in images
    ]
    return _in_steps(b, ready, axis)


def _in_steps(b: Builder, images: Sequence[fx.Node], axis: int) -> fx.Node:
    """Images side by side, by concatenations of as many as XNNPACK takes at once.

    Those that begin as one before, as in a dense block, go on from it.

    before: y = cat(s, t);  z = cat(s, t, u)
    after:  y = cat(s, t);  z = cat(y, u)
    """
    left = list(images)
    while (before := _begun(b, left, axis)) is not None:
        left = [before, *left[len(before.args[0]) :]]
    while len(left) > _MOST_AT_ONCE:
        left = [b.call(aten.cat.default, left[:_MOST_AT_ONCE], axis), *left[_MOST_AT_ONCE:]]
    return b.call(aten.cat.default, left, axis)


_AGAIN = "rounded again"
_MOST_AT_ONCE = 4
"""XNNPACK's delegate leaves a concatenation of more to TensorFlow Lite's own kernels."""


def _begun(b: Builder, images: list[fx.Node], axis: int) -> Any:
    """The longest concatenation that is there already of the first of `images`; None if none is."""
    done = [n for n in b.graph.nodes if n.target is aten.cat.default and n.args[1] == axis]
    begun = [
        n for n in done if len(n.args[0]) < len(images) and images[: len(n.args[0])] == [*n.args[0]]
    ]
    return max(begun, key=lambda n: len(n.args[0]), default=None)


def _again(b: Builder, image: fx.Node) -> fx.Node:
    """A copy of an image that may have another grid; the same one whenever it is asked for."""
    for reader in image.users:
        if reader.meta.get(_AGAIN):
            return reader
    copied = affine(b, image, "side", 1.0)
    copied.meta[_AGAIN] = True
    return copied


def never_negative(b: Builder, node: Any) -> bool:
    """Whether an image holds no number below zero, as far as the operations say that made it."""
    target = node.target
    if target in _RELU or target in {aten.sigmoid.default, aten.softmax.int}:
        return True
    if target is aten.hardtanh.default:
        return len(node.args) > 1 and operator.ge(node.args[1], 0)
    if target is aten.conv2d.default:
        image, *constants = node.all_input_nodes
        return all(_positive(b, one) for one in constants) and never_negative(b, image)
    if target in _KEEP:
        return all(never_negative(b, one) for one in node.all_input_nodes)
    return False


def _positive(b: Builder, node: fx.Node) -> bool:
    """Whether a tensor is a constant of no number below zero."""
    if node.op != "get_attr":
        return False
    value = b.tensor(str(node.target))
    return not value.requires_grad and bool((value >= 0).all())
