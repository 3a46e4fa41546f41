"""The int8 grids: float16-exact scales, covered ranges, weights that reach 127."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.compress.quantization import grid

scales = st.floats(2.0**-24, 65504.0, width=32)
activations = st.floats(-1e6, 1e6, width=32)


def is_float16(x: Tensor) -> bool:
    return x.dtype == torch.float32 and torch.equal(x.to(torch.float16).to(torch.float32), x)


def bits(x: Tensor) -> Tensor:
    return x.to(torch.float16).view(torch.int16)


@given(value=scales)
def test_float16_up_and_down_are_the_neighbours(value: float) -> None:
    scale = torch.tensor([value])
    up, down = grid.float16_up(scale), grid.float16_down(scale)
    assert is_float16(up)
    assert is_float16(down)
    assert down <= scale <= up
    assert bits(up) - bits(down) == (0 if is_float16(scale) else 1)


def test_float16_rounding_of_known_numbers() -> None:
    # Between 1 and 2 the step is 1/1024; below 2^-14 it is 2^-24.
    values = torch.tensor([1.0, 1.0001, 1.0009, 2.0**-24 * 2.4, 65503.0])
    torch.testing.assert_close(
        grid.float16_up(values),
        torch.tensor([1.0, 1 + 1 / 1024, 1 + 1 / 1024, 2.0**-24 * 3, 65504.0]),
        rtol=0,
        atol=0,
    )
    torch.testing.assert_close(
        grid.float16_down(values),
        torch.tensor([1.0, 1.0, 1.0, 2.0**-24 * 2, 65472.0]),
        rtol=0,
        atol=0,
    )


@given(one=activations, two=activations)
def test_activation_grid_covers_the_range_and_holds_zero(one: float, two: float) -> None:
    low, high = torch.tensor(min(one, two)), torch.tensor(max(one, two))
    scale, zero_point = grid.activation_grid(low, high)
    assert is_float16(scale)
    assert zero_point.dtype == torch.int32
    assert scale >= 2.0**-14
    assert grid.QMIN <= zero_point <= grid.QMAX
    # Every value of the range is at most half a step from the grid, and zero is on it.
    values = torch.stack([low, high, low.lerp(high, 0.3), torch.tensor(0.0)])
    values = values.clamp(min(low.item(), 0.0), max(high.item(), 0.0))
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, grid.QMIN, grid.QMAX)
    assert ((rounded - values).abs() <= 0.5001 * scale).all()
    assert rounded[-1] == 0.0


@given(one=activations, two=activations)
def test_activation_scale_wastes_little(one: float, two: float) -> None:
    low, high = min(one, two, 0.0), max(one, two, 0.0)
    assume(high - low > 255 * 2.0**-14)
    scale, _ = grid.activation_grid(torch.tensor(low), torch.tensor(high))
    least = (high - low) / 255
    assert least * (1 - 1e-6) <= scale.item() <= least * (1 + 2.0**-10)


def test_activation_grid_of_a_relu_starts_at_zero() -> None:
    scale, zero_point = grid.activation_grid(torch.tensor(0.0), torch.tensor(2.55))
    assert zero_point == -128
    assert scale == 0.010002136230468750  # the float16 number above 0.01


def test_activation_grid_of_nothing_is_the_smallest() -> None:
    scale, zero_point = grid.activation_grid(torch.tensor(0.0), torch.tensor(0.0))
    assert scale == 2.0**-14
    assert zero_point == -128


weights = st.lists(
    st.lists(st.floats(-100.0, 100.0, width=32), min_size=4, max_size=4), min_size=1, max_size=6
).map(lambda rows: torch.tensor(rows).view(len(rows), 1, 2, 2))


@given(weight=weights, exponent=st.integers(-30, 0))
def test_largest_weight_of_every_channel_reaches_127(weight: Tensor, exponent: int) -> None:
    weight = weight * 2.0**exponent
    found = grid.weight_scales(weight)
    assert found.shape == (len(weight),)
    assert is_float16(found)
    assert (found >= grid.SMALLEST_WEIGHT_SCALE).all()
    rounded = torch.fake_quantize_per_channel_affine(
        weight, found, torch.zeros(len(weight), dtype=torch.int32), 0, -127, 127
    )
    assert rounded.isfinite().all()
    largest = weight.abs().amax((1, 2, 3))
    reached = rounded.abs().amax((1, 2, 3))
    for scale, big, top in zip(found.tolist(), largest.tolist(), reached.tolist(), strict=True):
        if big >= 127 * grid.SMALLEST_WEIGHT_SCALE:
            assert top == 127 * scale
            assert math.isclose(top, big, rel_tol=1e-3) or scale < 2.0**-14
            # What TFLite's converter does to find the scale again, in single precision.
            assert (torch.tensor(top) / 127).item() == scale
        else:
            assert scale == grid.SMALLEST_WEIGHT_SCALE


@given(
    weight=weights,
    exponent=st.integers(-40, 0),
    bias=st.floats(-100.0, 100.0),
    input_scale=st.floats(2.0**-14, 1.0),
)
def test_faint_channels_get_the_smallest_grid_that_their_bias_fits(
    weight: Tensor, exponent: int, bias: float, input_scale: float
) -> None:
    weight = weight * 2.0**exponent
    biases = torch.full((len(weight),), bias)
    smallest = grid.smallest_weight_scales(biases, torch.tensor([input_scale]))
    raised = grid.raised_to(weight, smallest)
    scales = grid.weight_scales(raised)
    assert (scales >= smallest).all()
    assert (biases.abs() / (scales * input_scale) <= 2.0**29 * (1 + 1e-6)).all()
    steps = (raised / scales[:, None, None, None]).round().abs().amax((1, 2, 3))
    assert (steps >= 127).all()
    faint = weight.abs().amax((1, 2, 3)) < 127 * smallest
    assert torch.equal(raised[~faint], weight[~faint])
    assert ((raised != weight).sum((1, 2, 3)) == faint).all()
    assert (raised * weight >= 0).all()
    # Over the largest activation, 255 steps.
    change = (raised - weight).abs().amax((1, 2, 3)) * 255 * input_scale
    least = 127 * 255 * input_scale * grid.SMALLEST_WEIGHT_SCALE
    assert (change <= 1e-4 * abs(bias) + 1.01 * least).all()  # a float16 step is 2^-24 or more


def test_a_dead_channel_has_a_finite_grid() -> None:
    weight = torch.zeros(2, 3, 1, 1)
    weight[1] = 1.0
    found = grid.weight_scales(weight)
    assert found[0] == grid.SMALLEST_WEIGHT_SCALE
    assert found[1] == grid.float16_down(torch.tensor(1 / 127))


def test_weight_scales_are_outside_the_gradient() -> None:
    weight = torch.randn(4, 3, 1, 1, requires_grad=True)
    assert not grid.weight_scales(weight).requires_grad


def test_the_sigmoid_grid_holds_zero_and_almost_one() -> None:
    assert grid.SIGMOID_SCALE * (grid.QMIN - grid.SIGMOID_ZERO_POINT) == 0.0
    assert grid.SIGMOID_SCALE * (grid.QMAX - grid.SIGMOID_ZERO_POINT) == 255 / 256


def test_the_pixel_grid_holds_every_8_bit_number() -> None:
    assert grid.PIXEL_SCALE * (grid.QMIN - grid.PIXEL_ZERO_POINT) == 0
    assert grid.PIXEL_SCALE * (grid.QMAX - grid.PIXEL_ZERO_POINT) == 255
