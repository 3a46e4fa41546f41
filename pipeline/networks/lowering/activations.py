"""Activations, in the few forms that every runtime has in int8."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import affine, conv, each, image_of
from pipeline.networks.lowering.values import Pooled, Value, Viewed, keeps_order, shape_of

aten = torch.ops.aten
_SMALLEST_SLOPE = 1 / 64
"""XNNPACK multiplies by slope * input scale / output scale, which may not be below 2^-8."""


def relu(b: Builder, x: Value) -> Value:
    """ReLU stays."""
    return each(x, partial(b.call, aten.relu.default))


def hardtanh(b: Builder, x: Value, min_val: float = -1.0, max_val: float = 1.0) -> Value:
    """Clamps of two ends stay: ReLU6 and others."""
    low, high = float(min_val), float(max_val)
    return each(x, lambda image: b.call(aten.hardtanh.default, image, low, high))


def relu6(b: Builder, x: Value) -> Value:
    """ReLU6 is a clamp.

    before: y = relu6(x)
    after:  y = hardtanh(x, 0, 6)
    """
    return hardtanh(b, x, 0.0, 6.0)


def clamp(b: Builder, x: Value, min: float | None = None, max: float | None = None) -> Value:
    """Clamps of one end are ReLUs of a shifted image.

    before: y = clamp(x, min=a);  z = clamp(x, max=c)
    after:  y = relu(x - a) + a;  z = c - relu(c - x)
    """
    if min is not None and max is not None:
        return hardtanh(b, x, min, max)
    if min is None and max is None:
        return x
    factor, end = (1.0, min) if min is not None else (-1.0, max)
    assert end is not None
    if factor == 1.0 and end == 0:
        return relu(b, x)

    def clamped(image: fx.Node) -> fx.Node:
        above = b.call(aten.relu.default, affine(b, image, "from_end", factor, -factor * end))
        return affine(b, above, "to_end", factor, end)

    return each(x, clamped)


def hardsigmoid(b: Builder, x: Value) -> Value:
    """Hard sigmoid is a clamped affine map.

    before: y = hardsigmoid(x)
    after:  y = hardtanh(x / 6 + 1 / 2, 0, 1); the affine map a depthwise 1x1 convolution
    """
    return each(x, partial(_hardsigmoid, b))


def _hardsigmoid(b: Builder, image: fx.Node) -> fx.Node:
    return b.call(aten.hardtanh.default, affine(b, image, "hard_sigmoid", 1 / 6, 0.5), 0.0, 1.0)


def hardswish(b: Builder, x: Value) -> Value:
    """Hard swish is a product.

    before: y = hardswish(x)
    after:  y = x * hardsigmoid(x)
    """
    return each(x, lambda image: b.call(aten.mul.Tensor, image, _hardsigmoid(b, image)))


def sigmoid(b: Builder, x: Value) -> Value:
    """The sigmoid stays."""
    return each(x, partial(b.call, aten.sigmoid.default))


def silu(b: Builder, x: Value) -> Value:
    """SiLU is a product.

    before: y = silu(x)
    after:  y = x * sigmoid(x)
    """
    return each(
        x, lambda image: b.call(aten.mul.Tensor, image, b.call(aten.sigmoid.default, image))
    )


def tanh(b: Builder, x: Value) -> Value:
    """The hyperbolic tangent stays."""
    return each(x, partial(b.call, aten.tanh.default))


def leaky_relu(b: Builder, x: Value, negative_slope: float = 0.01) -> Value:
    """Leaky ReLU stays, but for slopes so small that XNNPACK has no steps for them.

    before: y = leaky_relu(x, a)
    after:  y = a * x + relu((1 - a) * x), each product a depthwise 1x1 convolution
    """
    if abs(negative_slope) < _SMALLEST_SLOPE:
        return each(x, partial(_leaky_sum, b, float(negative_slope)))
    return each(x, lambda image: b.call(aten.leaky_relu.default, image, float(negative_slope)))


def _leaky_sum(b: Builder, slope: float, image: fx.Node) -> fx.Node:
    above = b.call(aten.relu.default, affine(b, image, "above", 1 - slope))
    return b.call(aten.add.Tensor, above, affine(b, image, "slope", slope))


def elu(b: Builder, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    """ELU stays, of the form that all formats have.

    Raises:
        Unsupported: alpha or a scale is not 1, as in SELU and CELU.
    """
    if (alpha, scale, input_scale) != (1, 1, 1):
        raise Unsupported(f"an ELU with alpha {alpha:g} and scales {scale:g}, {input_scale:g}")
    # Written out: the operation's own default is a whole number, which coremltools refuses.
    return each(x, lambda image: b.call(aten.elu.default, image, 1.0))


def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    """GELU stays."""
    return each(x, lambda image: b.call(aten.gelu.default, image, approximate=approximate))


def prelu(b: Builder, x: Value, weight: fx.Node) -> Value:
    """PReLU is a sum of two ReLUs; the slopes stay what is trained.

    before: y = prelu(x, a)
    after:  y = relu(x) + conv(relu(-x), -a), one group a channel
    """
    image = image_of(x)
    channels = shape_of(image)[0]
    slopes = b.changed(
        str(weight.target), lambda a: -a.expand(channels)[:, None, None, None], (channels, 1, 1, 1)
    )
    negative = b.call(aten.relu.default, affine(b, image, "negative", -1.0))
    below = conv(b, negative, slopes, groups=channels)
    return b.call(aten.add.Tensor, b.call(aten.relu.default, image), below)


def dropout(b: Builder, x: Value, p: float, train: bool) -> Value:
    """Dropout stays while it is trained, and goes from a network in evaluation mode."""
    if not train or p == 0:
        return x
    if isinstance(x, Pooled):
        return replace(x, image=b.call(aten.dropout.default, x.image, p, True))
    return each(x, lambda image: b.call(aten.dropout.default, image, p, True))


def softmax(b: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    """Softmax over the classes, and over shares of channels that lie side by side.

    before: y = softmax(x.reshape(batch, channels, shares), 2).reshape(batch, -1, 1, 1)
    after:  the same

    Raises:
        Unsupported: over anything else.
    """
    if isinstance(x, Viewed) and keeps_order(x) and shape_of(x.image)[1:] == (1, 1):
        rank = len(x.shape) + 1
        if rank == 2 and dim in (1, -1):
            return b.call(aten.softmax.int, b.call(aten.flatten.using_ints, x.image, 1), 1)
        if rank == 3 and dim in (2, -1):
            apart = b.call(aten.reshape.default, x.image, [-1, *x.shape])
            shares = b.call(aten.softmax.int, apart, 2)
            image = b.call(aten.reshape.default, shares, [-1, *shape_of(x.image)])
            return replace(x, image=image)
    raise Unsupported(
        f"a softmax over axis {dim} of (batch, {', '.join(map(str, getattr(x, 'shape', ())))}); it "
        "may be over the classes, or over the last axis of shares of channels"
    )
