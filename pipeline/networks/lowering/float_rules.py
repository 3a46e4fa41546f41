"""Operations that all formats have in float and not all in int8.

They are written only where a recipe leaves the module in float (`qat.float`). Normalisations over
an image are written out in means, sums and products, since each format has other ones, and other
layouts, for them:

    y = (x - mean) / sqrt(mean of (x - mean)^2 + eps) * gamma + beta
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, each, image_of, pixel
from pipeline.networks.lowering.pools import average_of_whole, mean_of_image, pair
from pipeline.networks.lowering.values import (
    Value,
    Viewed,
    channels_last,
    flat,
    is_channels_last,
    shape_of,
)

aten = torch.ops.aten
Rule = Callable[..., Any]


def _each(target: Any) -> Rule:
    """An operation number by number stays."""

    def rule(b: Builder, x: Value, *given: float) -> Value:
        return each(x, lambda image: b.call(target, image, *given))

    return rule


def _both(target: Any) -> Rule:
    """An operation of two images stays, and of an image and a constant that fits beside it.

    Raises:
        Unsupported: an operand is no image, and no constant either.
    """

    def rule(b: Builder, x: Any, y: Any, **given: Any) -> fx.Node:
        if given:
            raise Unsupported(f"it with {', '.join(given)}")
        operands = [one if _is_constant(one) else image_of(one) for one in (x, y)]
        return b.call(target, *operands)

    return rule


def _is_constant(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, fx.Node) and value.op == "get_attr")


def reciprocal(b: Builder, x: Value) -> Value:
    """One through a number is a power of it.

    before: y = reciprocal(x)
    after:  y = x^-1
    """
    return each(x, lambda image: b.call(aten.pow.Tensor_Scalar, image, -1.0))


def softmax(b: Builder, x: Value, dim: int, dtype: object = None) -> Value:
    """A softmax over the channels of an image stays.

    Raises:
        Unsupported: over another axis.
    """
    image = image_of(x)
    if dim not in (1, -3):
        raise Unsupported(f"a softmax over axis {dim} of an image; it may be over channels")
    return b.call(aten.softmax.int, image, 1)


def average_pool(
    b: Builder,
    x: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """An average pool that does not count its padding is one that does, times a constant map.

    before: y = avg_pool(x, k, count_include_pad=False)
    after:  y = conv(x, 1 / k^2) * (k^2 / numbers of the image in each window)

    Raises:
        Unsupported: windows reach over the padding, or are divided by a number of their own.
    """
    image = image_of(x)
    kernel, strides, pads = (pair(v) for v in (kernel_size, stride or kernel_size, padding))
    if ceil_mode or divisor_override is not None:
        raise Unsupported("an average pool with ceil_mode, or a divisor of its own")
    whole = average_of_whole(b, image, kernel, strides, pads)
    ones = torch.ones(1, 1, *shape_of(image)[1:])
    shares = torch.nn.functional.avg_pool2d(ones, kernel, strides, pads)
    return b.call(aten.mul.Tensor, whole, b.constant("counted.weight", 1 / shares))


def group_norm(
    b: Builder,
    x: Value,
    num_groups: int,
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """Group normalisation, over height, width and the channels of each group."""
    return _scaled(b, _over_groups(b, image_of(x), num_groups, eps), weight, bias)


def instance_norm(
    b: Builder,
    x: Value,
    weight: fx.Node | None,
    bias: fx.Node | None,
    running_mean: fx.Node | None,
    running_var: fx.Node | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    """Instance normalisation is a group normalisation of one channel each.

    Raises:
        Unsupported: it reads running statistics, as batch normalisation does.
    """
    if not use_input_stats:
        raise Unsupported("an instance normalisation of running statistics; take nn.BatchNorm2d")
    image = image_of(x)
    return _scaled(b, _over_groups(b, image, shape_of(image)[0], eps), weight, bias)


def layer_norm(
    b: Builder,
    x: Value,
    normalized_shape: Sequence[int],
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    """Layer normalisation over the channels of every pixel, or over a whole image.

    before: y = layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), over channels
    after:  y = (x - m) * rsqrt(mean of (x - m)^2 over channels + eps) * gamma + beta

    Raises:
        Unsupported: over other axes.
    """
    shape = tuple(normalized_shape)
    image = pixel(x)
    if image is not None and shape == shape_of(image)[:1]:
        return flat(_scaled(b, _over_channels(b, image, eps), weight, bias))
    if isinstance(x, Viewed) and shape == x.shape[-1:] and is_channels_last(x):
        return channels_last(_scaled(b, _over_channels(b, x.image, eps), weight, bias))
    image = image_of(x)
    if shape != shape_of(image):
        raise Unsupported(
            f"a layer normalisation over {shape} of an image of {shape_of(image)}; it may be over "
            "the channels of every pixel, or over the whole image"
        )
    made = _over_groups(b, image, 1, eps)
    made = made if weight is None else b.call(aten.mul.Tensor, made, weight)
    return made if bias is None else b.call(aten.add.Tensor, made, bias)


def _over_channels(b: Builder, image: fx.Node, eps: float) -> fx.Node:
    """Every pixel's numbers less their mean, through their deviation."""
    channels = shape_of(image)[0]
    share = torch.full((1, channels, 1, 1), 1 / channels)
    mean = conv(b, image, b.constant("less_mean.weight", -share))
    rest = b.call(aten.add.Tensor, image, mean)
    square = b.call(aten.mul.Tensor, rest, rest)
    weights = b.constant("variance.weight", share), b.constant("variance.bias", torch.tensor([eps]))
    return _divided(b, rest, conv(b, square, *weights))


def _over_groups(b: Builder, image: fx.Node, groups: int, eps: float) -> fx.Node:
    """The numbers of every group of channels less their mean, through their deviation."""
    rest = b.call(aten.add.Tensor, image, _group_means(b, image, groups, -1.0, 0.0))
    square = b.call(aten.mul.Tensor, rest, rest)
    return _divided(b, rest, _group_means(b, square, groups, 1.0, eps))


def _divided(b: Builder, rest: fx.Node, variance: fx.Node) -> fx.Node:
    return b.call(aten.mul.Tensor, rest, b.call(aten.rsqrt.default, variance))


def _group_means(b: Builder, image: fx.Node, groups: int, factor: float, shift: float) -> fx.Node:
    """`factor` times the mean of each group of channels and `shift`, for every channel of it.

    after:  x -> mean over height and width -> conv(1 / channels of a group), an output a group
            -> conv(factor, shift), an output a channel
    """
    channels = shape_of(image)[0]
    means = mean_of_image(b, image)
    if groups < channels:
        each_has = channels // groups
        share = torch.full((groups, each_has, 1, 1), 1 / each_has)
        means = conv(b, means, b.constant("group_mean.weight", share), groups=groups)
    weight = b.constant("of_group.weight", torch.full((channels, 1, 1, 1), factor))
    bias = b.constant("of_group.bias", torch.full((channels,), shift)) if shift else None
    return conv(b, means, weight, bias, groups=groups)


def _scaled(b: Builder, image: fx.Node, weight: fx.Node | None, bias: fx.Node | None) -> fx.Node:
    """An image times a factor for each channel and with a summand; both stay trained."""
    if weight is None and bias is None:
        return image
    channels = shape_of(image)[0]
    if weight is None:
        factor = b.constant("scaled.weight", torch.ones(channels, 1, 1, 1))
    else:
        factor = b.reshaped(str(weight.target), (channels, 1, 1, 1))
    return conv(b, image, factor, bias, groups=channels)


_ELEMENTWISE = (
    *(aten.exp.default, aten.log.default, aten.sqrt.default, aten.rsqrt.default),
    *(aten.abs.default, aten.sin.default, aten.cos.default, aten.pow.Tensor_Scalar),
)
_OF_TWO = {
    **dict.fromkeys((aten.add.Tensor, aten.add_.Tensor), aten.add.Tensor),
    **dict.fromkeys((aten.sub.Tensor, aten.sub_.Tensor), aten.sub.Tensor),
    **dict.fromkeys((aten.mul.Tensor, aten.mul_.Tensor), aten.mul.Tensor),
    **dict.fromkeys((aten.div.Tensor, aten.div_.Tensor), aten.div.Tensor),
    aten.maximum.default: aten.maximum.default,
    aten.minimum.default: aten.minimum.default,
}
FLOAT_RULES: dict[Any, Rule] = {
    **{target: _each(target) for target in _ELEMENTWISE},
    **{target: _both(kept) for target, kept in _OF_TWO.items()},
    aten.reciprocal.default: reciprocal,
    aten.softmax.int: softmax,
    aten.avg_pool2d.default: average_pool,
    aten.group_norm.default: group_norm,
    aten.instance_norm.default: instance_norm,
    aten.layer_norm.default: layer_norm,
}
"""What an operation becomes in float where it has no form in int8."""
