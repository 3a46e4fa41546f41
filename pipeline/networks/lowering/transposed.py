"""Transposed convolutions, by convolutions: runtimes have them in int8, and one grid a channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from pipeline.networks.lowering.builder import Builder, Unsupported
from pipeline.networks.lowering.images import conv, image_of, part_of
from pipeline.networks.lowering.pools import pair
from pipeline.networks.lowering.values import Value, shape_of

aten = torch.ops.aten


def conv_transpose(
    b: Builder,
    x: Value,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Value:
    """A transposed convolution is a convolution with its kernel turned round.

    Of a stride, the weights that a place within a stride meets are a kernel of their own, and every
    place becomes a channel (Shi et al. 2016, "Is the deconvolution layer the same as a
    convolutional layer?", arXiv:1609.07009).

    before: y = conv_transpose(x, w), stride 1
    after:  y = conv(x, w turned round, its channels exchanged)

    before: y = conv_transpose(x, w), stride 2
    after:  y = cut(pixel_shuffle(conv(x, w'))), four output channels of w' to each of w

    Raises:
        Unsupported: the strides of height and width differ, or the padding of one of stride 1 is
            larger than its kernel.
    """
    strides, pads, dilations, extra = (pair(v) for v in (stride, padding, dilation, output_padding))
    step = strides[0]
    if strides != [step, step]:
        raise Unsupported(f"a transposed convolution of strides {strides}, which differ")
    image = image_of(x)
    if step > 1 or any(extra):
        return _of_places(b, image, weight, bias, step, pads, extra, groups, dilations)
    kernel = [int(size) for size in weight.meta["val"].shape[2:]]
    around = [d * (k - 1) - p for d, k, p in zip(dilations, kernel, pads, strict=True)]
    if min(around) < 0:
        raise Unsupported(f"a transposed convolution with padding {pads}, larger than its kernel")
    form = (-1, groups, *kernel)  # turned round: no shape
    changed = b.changed(str(weight.target), lambda w: _turned(w, groups), form)
    return b.call(aten.conv2d.default, image, changed, bias, [1, 1], around, dilations, groups)


def _of_places(
    b: Builder,
    image: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    step: int,
    pads: Sequence[int],
    extra: Sequence[int],
    groups: int,
    dilations: Sequence[int],
) -> fx.Node:
    """A transposed convolution of a stride `step`: every place within it is a channel first."""
    kernel = [int(size) for size in weight.meta["val"].shape[2:]]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    taps = [-(-(size + more) // step) for size, more in zip(reach, extra, strict=True)]

    def of_places(w: Tensor) -> Tensor:
        """(inputs, outputs, ...) to (outputs * step * step, inputs / groups, *taps)."""
        wide = w.new_zeros(*w.shape[:2], *(size * step for size in taps))
        wide[:, :, : reach[0] : dilations[0], : reach[1] : dilations[1]] = w
        parts = wide.reshape(*w.shape[:2], taps[0], step, taps[1], step)
        by_place = parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)  # as pixel_shuffle reads them
        return _turned(by_place, groups)

    changed = b.changed(str(weight.target), of_places, (-4, groups, step, *reach))
    if bias is not None:
        bias = b.changed(str(bias.target), lambda v: v.repeat_interleave(step * step), (-4, step))
    made = conv(b, image, changed, bias, padding=[n - 1 for n in taps], groups=groups)
    large = b.call(aten.pixel_shuffle.default, made, step) if step > 1 else made
    for axis, (size, wide, p, more) in enumerate(
        zip(shape_of(image)[1:], reach, pads, extra, strict=True), start=2
    ):
        large = part_of(b, large, axis, p, (size - 1) * step - p + wide + more)
    return large


def _turned(w: Tensor, groups: int) -> Tensor:
    """(inputs, outputs / groups, ...) to (outputs, inputs / groups, ...), its kernel turned."""
    inputs, kernel = len(w), w.shape[2:]
    parts = w.flip(2, 3).reshape(groups, inputs // groups, -1, *kernel).transpose(1, 2)
    return parts.reshape(-1, inputs // groups, *kernel)
