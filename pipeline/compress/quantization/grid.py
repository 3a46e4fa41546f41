"""The int8 grids all runtimes share.

A tensor's grid is a scale and a zero point: `value = scale * (q - zero_point)`. The three formats
store the pair differently (TFLite and ONNX keep float32 scales, Core ML float16), so every scale
here is a float16 number from the start: then one set of numbers is exact in every file. Scales
below float16's normal range lose bits, so grids stop at its smallest normal number for
activations; weights may go down to the subnormals.
"""

from __future__ import annotations

import torch
from torch import Tensor

QMIN, QMAX = -128, 127
"""int8 range of activations."""

WEIGHT_QMAX = 127
"""Weights use -127..127: TFLite fixes zero point 0 and a symmetric range for them."""

SIGMOID_SCALE, SIGMOID_ZERO_POINT = 1 / 256, -128
"""TFLite's int8 LOGISTIC and SOFTMAX accept no other output grid."""

TANH_SCALE, TANH_ZERO_POINT = 1 / 128, 0
"""TFLite's int8 TANH accepts no other output grid."""

PIXEL_SCALE, PIXEL_ZERO_POINT = 1.0, -128
"""8-bit pixels 0..255 are their own grid: q = pixel - 128, with nothing to round."""

LEAST_PART = 2.0**-10
"""Least share of a sum's scale that a part of it may have: XNNPACK takes no other sum. A part so
much smaller is less than a quarter of a step of the sum, so that a coarser grid costs nothing."""

SMALLEST_ACTIVATION_SCALE = 2.0**-14
SMALLEST_WEIGHT_SCALE = 2.0**-24
_MOST_BIAS_STEPS = 2.0**29


def float16_up(scale: Tensor) -> Tensor:
    """The next float16 number at or above each positive `scale`, as float32."""
    half = scale.to(torch.float16)
    short = half.to(torch.float32) < scale
    return torch.where(short, _neighbour(half, 1), half).to(torch.float32)


def float16_down(scale: Tensor) -> Tensor:
    """The next float16 number at or below each positive `scale`, as float32."""
    half = scale.to(torch.float16)
    long = half.to(torch.float32) > scale
    return torch.where(long, _neighbour(half, -1), half).to(torch.float32)


def _neighbour(half: Tensor, step: int) -> Tensor:
    # Neighbouring positive float16 numbers have neighbouring bit patterns.
    return (half.view(torch.int16) + step).view(torch.float16)


def activation_grid(
    low: Tensor, high: Tensor, least: float = SMALLEST_ACTIVATION_SCALE
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover `low`..`high` and hold zero exactly.

    Args:
        low: smallest observed value, 0-d float32.
        high: largest observed value, 0-d float32.
        least: that the scale may be.

    Returns:
        A float16-representable scale (float32) and the zero point (int32), both 0-d. Rounding
        the scale up keeps the observed range inside the grid.
    """
    low = low.clamp(max=0.0)
    high = high.clamp(min=0.0)
    scale = float16_up(((high - low) / (QMAX - QMIN)).clamp(min=least))
    zero_point = (QMIN - torch.round(low / scale)).clamp(QMIN, QMAX)
    return scale, zero_point.to(torch.int32)


def largest_weights(weight: Tensor) -> Tensor:
    """Largest magnitude of every output channel (dimension 0) of `weight`."""
    values, others = weight.detach(), tuple(range(1, weight.dim()))
    # Two passes: torch's aminmax over a dimension takes five times as long.
    return torch.maximum(values.amax(others), -values.amin(others))


def scales_of_largest(largest: Tensor) -> Tensor:
    """Symmetric scales of channels whose largest weights have the magnitudes `largest`.

    Rounding down lets the largest weight of a channel reach exactly 127. TFLite's converter
    recomputes the scale as largest / 127, and this way finds the same number.
    """
    return float16_down((largest / WEIGHT_QMAX).clamp(min=SMALLEST_WEIGHT_SCALE))


def weight_scales(weight: Tensor) -> Tensor:
    """Symmetric scales of `weight`, one per output channel (dimension 0)."""
    return scales_of_largest(largest_weights(weight))


def smallest_weight_scales(bias: Tensor, input_scale: Tensor) -> Tensor:
    """The smallest scales that channels may have for their `bias` to fit into int32.

    In steps of input scale x weight scale a bias stays within 2^29: TFLite's converter gives
    channels beyond 2^30 another scale, and runtimes add up products in what is left.

    Args:
        bias: (out channels).
        input_scale: of the activation, one element.
    """
    fitting = bias.detach().abs() / (input_scale * _MOST_BIAS_STEPS)
    return float16_up(fitting.clamp(min=SMALLEST_WEIGHT_SCALE))


def raised_to(weight: Tensor, scales: Tensor) -> Tensor:
    """`weight` with the largest of every output channel at 127 steps of `scales` or more.

    Only channels fainter than that change, and each in one weight. With no weight at 127 steps,
    TFLite's converter, which derives scales from weights, would find another.
    """
    rows = weight.detach().flatten(1)
    place = rows.abs().argmax(1, keepdim=True)
    largest, least = rows.gather(1, place), WEIGHT_QMAX * scales[:, None]
    raised = torch.where(largest.abs() < least, least.copysign(largest), largest)
    return rows.scatter(1, place, raised).view_as(weight)
