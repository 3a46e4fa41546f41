"""Convolutions, linear layers and batch normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, image_of, pixel
from pipeline.networks.lowering.pools import pair, windows_as_matrix
from pipeline.networks.lowering.values import (
    Pooled,
    Value,
    Viewed,
    channels_last,
    flat,
    is_channels_last,
    is_flat,
    shape_of,
)

aten = torch.ops.aten


def conv2d(
    b: Builder,
    x: Value,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Value:
    """A convolution stays; padding by name becomes numbers.

    before: y = conv(x, padding="same"), of an even kernel
    after:  y = conv(pad(x))

    TensorFlow has no convolution with both a stride and a dilation; every other format has.

    before: y = conv(x, stride=2, dilation=2, padding=2)
    after:  y = conv(x[:, :, ::2, ::2], padding=1), the pixels taken by a convolution of 1

    before: y = conv(x, w, stride=2, dilation=3)
    after:  y = conv(x, w', stride=2), w' with the zeros between its weights
    """
    image = image_of(x)
    strides, dilations = pair(stride), pair(dilation)
    kernel = list(weight.meta["val"].shape[2:])
    if isinstance(padding, str):
        total = [
            d * (k - 1) if padding == "same" else 0 for d, k in zip(dilations, kernel, strict=True)
        ]
        pads = [size // 2 for size in total]
        after = [size - 2 * (size // 2) for size in total]
        if any(after):
            image = b.call(aten.constant_pad_nd.default, image, [0, after[1], 0, after[0]], 0.0)
    else:
        pads = pair(padding)
    if max(strides) > 1 and max(dilations) > 1:
        if any(d % s or p % s for s, d, p in zip(strides, dilations, pads, strict=True)):
            weight = spread(b, weight, dilations)
            dilations = [1, 1]
        else:
            image = every(b, image, strides)
            dilations = [d // s for s, d in zip(strides, dilations, strict=True)]
            pads = [p // s for s, p in zip(strides, pads, strict=True)]
            strides = [1, 1]
    return b.call(aten.conv2d.default, image, weight, bias, strides, pads, dilations, groups)


def every(b: Builder, image: fx.Node, strides: Sequence[int]) -> fx.Node:
    """The first of every `strides` rows and columns, by a convolution.

    XNNPACK takes no slices of a step. The convolution has one group a channel, its weights are 1.
    """
    channels = shape_of(image)[0]
    ones = b.constant("identity.weight", torch.ones(channels, 1, 1, 1))
    return conv(b, image, ones, stride=strides, groups=channels)


def spread(b: Builder, weight: fx.Node, dilations: Sequence[int]) -> fx.Node:
    """The weights of a kernel with the zeros that its dilation puts between them."""

    def filled(w: torch.Tensor) -> torch.Tensor:
        sizes = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
        wide = w.new_zeros(*w.shape[:2], *sizes)
        wide[:, :, :: dilations[0], :: dilations[1]] = w
        return wide

    return b.changed(str(weight.target), filled, (-3, *dilations))


def linear(b: Builder, x: Value, weight: fx.Node, bias: fx.Node | None = None) -> Value:
    """A linear layer is a convolution whose kernel is the whole image.

    before: y = linear(flatten(x), w)
    after:  y = flatten(conv(x, w)), of the height and width of x

    before: y = linear(x.permute(0, 2, 3, 1), w)
    after:  y = conv(x, w).permute(0, 2, 3, 1), its kernel one pixel

    before: y = linear(flatten(adaptive_avg_pool(x)), w), more windows than pixels
    after:  y = flatten(conv(x, w')), w' of a pixel the sum of what w gives the windows that see it

    Raises:
        Unsupported: it reads anything but a flat vector, or the channels of every pixel.
    """
    outputs = int(weight.meta["val"].shape[0])
    if isinstance(x, Pooled):
        return flat(conv(b, x.image, _of_pixels(b, x, str(weight.target), outputs), bias))
    if isinstance(x, Viewed) and is_channels_last(x):
        kernel = b.reshaped(str(weight.target), (outputs, shape_of(x.image)[0], 1, 1))
        return channels_last(conv(b, x.image, kernel, bias))
    if not is_flat(x):
        if isinstance(x, Viewed) or len(x.meta["val"].shape) != 2:  # type: ignore[union-attr]
            raise Unsupported("a linear layer that does not read a vector (batch, features)")
        raise Unsupported("a linear layer behind an operation that leaves no image")
    assert isinstance(x, Viewed)
    kernel = b.reshaped(str(weight.target), (outputs, *shape_of(x.image)))
    return flat(conv(b, x.image, kernel, bias))


def _of_pixels(b: Builder, pooled: Pooled, path: str, outputs: int) -> fx.Node:
    """The weights of a linear layer that reads windows, as weights of the pixels in them.

    Raises:
        Unsupported: the windows are not read as a vector.
    """
    if not pooled.vector:
        raise Unsupported("a linear layer that does not read a vector (batch, features)")
    channels, height, width = shape_of(pooled.image)
    rows = windows_as_matrix(height, pooled.windows[0])
    columns = windows_as_matrix(width, pooled.windows[1])

    def of_pixels(w: torch.Tensor) -> torch.Tensor:
        windows = w.reshape(outputs, channels, *pooled.windows)
        return torch.einsum("ocij,ih,jw->ochw", windows, rows.to(w), columns.to(w))

    return b.changed(path, of_pixels, (-2, *pooled.windows, height, width))


def batch_norm(
    b: Builder,
    x: Value,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    """Batch normalisation stays; `with_convolutions_of_their_own` gives it what it is folded into.

    Raises:
        Unsupported: it has no running statistics, or reads no image.
    """
    if running_mean is None or running_var is None:
        raise Unsupported(
            "a batch normalisation without running statistics, which cannot be folded; give it "
            "track_running_stats=True"
        )
    of_vector = pixel(x)
    image = of_vector if of_vector is not None else image_of(x)
    statistics = (weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    normal = b.call(aten.batch_norm.default, image, *statistics)
    return flat(normal) if of_vector is not None else normal


def with_convolutions_of_their_own(b: Builder) -> None:
    """Put a convolution before every batch normalisation that is not the only reader of one.

    Only once the whole graph is written is it known who reads what.

    before: y = batch_norm(x)
    after:  y = batch_norm(conv(x, 1)), one group a channel
    """
    for norm in [n for n in b.graph.nodes if n.target is aten.batch_norm.default]:
        image = norm.args[0]
        if image.target is aten.conv2d.default and len(image.users) == 1:
            continue
        b.at(norm)
        channels = shape_of(image)[0]
        with b.graph.inserting_before(norm):
            ones = b.constant("identity.weight", torch.ones(channels, 1, 1, 1))
            norm.update_arg(0, conv(b, image, ones, groups=channels))
