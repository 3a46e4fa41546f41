"""Sums, products and what is made of them; with constants they are affine maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import affine, conv, each, image_of
from pipeline.networks.lowering.stacks import stacked
from pipeline.networks.lowering.values import Stacked, Value, Viewed, shape_of

aten = torch.ops.aten


def add(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
    """Sums of images stay; with a constant they are affine maps.

    before: z = x + 3
    after:  z = conv(x, 1, 3), one group a channel
    """
    if _is_constant(y):
        if isinstance(y, fx.Node):
            _refuse_maps(y, x)
        return _affine(b, x, 1.0, _times(b, y, alpha))
    if _is_constant(x):
        return _affine(b, y, alpha, x)
    if alpha != 1:
        y = _affine(b, y, alpha, 0.0)
    return _both(b, aten.add.Tensor, x, y)


def sub(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
    """Differences are sums, since ONNX Runtime has no integer subtraction.

    before: z = x - y;  u = 1 - x
    after:  z = x + conv(y, -1);  u = conv(x, -1, 1); one group a channel
    """
    return add(b, x, y, -alpha)


def rsub(b: Builder, x: Any, y: Any, alpha: float = 1) -> Value:
    """`y - alpha * x`, as `sub`."""
    return sub(b, y, x, alpha)


def mul(b: Builder, x: Any, y: Any) -> Value:
    """Products of images stay; with a constant they are affine maps.

    before: z = 2 * x;  u = x * gamma, a parameter of every channel
    after:  z = conv(x, 2);  u = conv(x, gamma); one group a channel
    """
    if _is_constant(y):
        return _affine(b, x, y, 0.0)
    if _is_constant(x):
        return _affine(b, y, x, 0.0)
    return _both(b, aten.mul.Tensor, x, y)


def div(b: Builder, x: Any, y: Any) -> Value:
    """Division by a constant is an affine map.

    before: z = x / 6
    after:  z = conv(x, 1 / 6), one group a channel

    Raises:
        Unsupported: division by what is computed.
    """
    if not _is_constant(y) or isinstance(y, fx.Node):
        raise Unsupported("a division by what the network computes")
    return _affine(b, x, 1.0 / torch.as_tensor(y, dtype=torch.float64), 0.0)


def neg(b: Builder, x: Value) -> Value:
    """A change of sign is an affine map.

    before: y = -x
    after:  y = conv(x, -1), one group a channel
    """
    return _affine(b, x, -1.0, 0.0)


def _is_constant(value: object) -> bool:
    return isinstance(value, int | float | Tensor) or (
        isinstance(value, fx.Node) and value.op == "get_attr"
    )


def _times(b: Builder, constant: Any, factor: float) -> Any:
    if isinstance(constant, fx.Node):
        return constant if factor == 1 else factor * b.tensor(str(constant.target))
    return constant * factor


def _affine(b: Builder, x: Value, factor: Any, shift: Any) -> Value:
    """A value times a constant and with one added; a parameter stays trained."""
    for constant in (factor, shift):
        if isinstance(constant, fx.Node):
            _refuse_maps(constant, x)
    if isinstance(factor, fx.Node) and shift == 0.0:
        image = image_of(x)
        channels = shape_of(image)[0]
        shaped = b.changed(
            str(factor.target),
            lambda v: v.reshape(-1).expand(channels)[:, None, None, None],
            (channels, 1, 1, 1),
        )
        return conv(b, image, shaped, groups=channels)
    factor, shift = (
        b.tensor(str(value.target)) if isinstance(value, fx.Node) else value
        for value in (factor, shift)
    )
    if _same(factor, 1.0) and _same(shift, 0.0):
        return x
    return each(x, lambda image: affine(b, image, "affine", factor, shift))


def _same(value: Any, number: float) -> bool:
    return bool((torch.as_tensor(value) == number).all())


def _refuse_maps(constant: fx.Node, x: Value) -> None:
    """Constants may be one number, or one for each channel."""
    shape = tuple(constant.meta["val"].shape)
    channels = shape_of(image_of(x))[0]
    count = constant.meta["val"].numel()
    if count not in (1, channels) or (count > 1 and (len(shape) < 3 or shape[-2:] != (1, 1))):
        raise Unsupported(
            f"a constant of shape {shape} beside an image; it may be one number for each channel"
        )


def _both(b: Builder, target: Callable[..., Tensor], x: Value, y: Value) -> Value:
    """An operation of two computed values."""
    if isinstance(x, Stacked) or isinstance(y, Stacked):
        return _of_stacks(b, target, x, y)
    if isinstance(x, Viewed) and isinstance(y, Viewed):
        if len(x.shape) == 4 or len(y.shape) == 4:
            return _of_stacks(b, target, x, y)
        if _same_order(x, y):
            made = b.call(target, x.image, y.image)
            return Viewed(image=made, shape=x.shape, moves=x.moves)
        raise Unsupported("two tensors whose numbers lie in different orders")
    if (isinstance(x, Viewed) and len(x.shape) == 4) or (
        isinstance(y, Viewed) and len(y.shape) == 4
    ):
        return _of_stacks(b, target, x, y)
    return b.call(target, image_of(x), image_of(y))


def _same_order(x: Viewed, y: Viewed) -> bool:
    """Whether two views are of images of one shape, whose numbers lie in one order."""
    alike = x.shape == y.shape and shape_of(x.image) == shape_of(y.image)
    return alike and bool((x.order() == y.order()).all())


def _of_stacks(b: Builder, target: Any, x: Value, y: Value) -> Stacked:
    """Image by image; one image stands beside each of a stack.

    before: z = stack(x1, x2) * stack(y1, y2)
    after:  z = stack(x1 * y1, x2 * y2)
    """
    left, right = (
        value.images if isinstance(value, Stacked) else stacked(b, value).images for value in (x, y)
    )
    count = max(len(left), len(right))
    if {len(left), len(right)} - {1, count}:
        raise Unsupported(f"stacks of {len(left)} and {len(right)} images")
    pairs = zip(left * (count // len(left)), right * (count // len(right)), strict=True)
    return Stacked(images=tuple(b.call(target, one, two) for one, two in pairs))


def total(
    b: Builder,
    x: Value,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    dtype: object = None,
) -> Value:
    """Sums over a stack, and over height and width.

    before: y = sum(stack(x1, x2), 1)
    after:  y = x1 + x2

    Raises:
        Unsupported: over other axes.
    """
    axes = [int(axis) for axis in dim or ()]
    if (isinstance(x, Stacked) or (isinstance(x, Viewed) and len(x.shape) == 4)) and axes == [1]:
        images = stacked(b, x).images
        made = images[0]
        for image in images[1:]:
            made = b.call(aten.add.Tensor, made, image)
        return made
    raise Unsupported(f"a sum over axes {axes}; it may be over a stack of images")
