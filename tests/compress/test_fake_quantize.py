"""Fake quantization: what moves a grid and what does not, gradients, agreement with int8."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline.compress.quantization import fold, grid
from pipeline.compress.quantization.fake_quantize import (
    ActivationFakeQuantize,
    FixedFakeQuantize,
    WeightFakeQuantize,
)
from tests.making.graphs import calibrated, in_graph
from tests.making.networks import images
from tests.making.programs import program

quantized = torch.ops.quantized_decomposed


def observed(*ranges: tuple[float, float]) -> ActivationFakeQuantize:
    module = ActivationFakeQuantize()
    for low, high in ranges:
        module(torch.tensor([low, high]))
    return module


def test_the_first_batch_sets_the_range_and_later_ones_are_averaged_in() -> None:
    module = observed((-1.0, 3.0), (-2.0, 5.0))
    assert module.low.item() == pytest.approx(-1.05)
    assert module.high.item() == pytest.approx(3.1)
    scale, zero_point = grid.activation_grid(module.low, module.high)
    assert torch.equal(module.scale, scale)
    assert torch.equal(module.zero_point, zero_point)


def test_a_frozen_observer_does_not_move() -> None:
    module = observed((-1.0, 3.0))
    module.disable_observer()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module(torch.tensor([-100.0, 100.0]))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_switched_off_it_changes_nothing_but_still_observes() -> None:
    module = ActivationFakeQuantize()
    module.disable_fake_quant()
    x = torch.tensor([-0.123, 4.567])
    assert torch.equal(module(x), x)
    assert module.high == x[1]


def test_switched_on_it_rounds_to_its_own_grid() -> None:
    module = observed((-1.0, 3.0))
    module.disable_observer()
    scale, zero_point = module.calculate_qparams()
    assert scale.shape == zero_point.shape == (1,)
    steps = torch.arange(grid.QMIN, grid.QMAX + 1)
    values = (steps - zero_point) * scale
    assert torch.equal(module(values), values)
    assert torch.equal(module(values + 0.3 * scale), values)
    assert module(torch.tensor(1e3)) == values[-1]
    assert module(torch.tensor(-1e3)) == values[0]


def test_gradient_passes_inside_the_range_and_stops_outside() -> None:
    module = observed((-1.0, 3.0))
    module.disable_observer()
    x = torch.tensor([-5.0, -0.9, 0.0, 2.9, 5.0], requires_grad=True)
    module(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]))


def test_the_sigmoid_grid_is_fixed() -> None:
    module = FixedFakeQuantize(scale=grid.SIGMOID_SCALE, zero_point=grid.SIGMOID_ZERO_POINT)
    out = module(torch.tensor([-3.0, 0.0, 0.5, 1.0, 7.0]))
    assert torch.equal(out, torch.tensor([0.0, 0.0, 0.5, 255 / 256, 255 / 256]))
    scale, zero_point = module.calculate_qparams()
    assert (scale.item(), zero_point.item()) == (1 / 256, -128)


def test_the_grid_of_pixels_is_fixed_and_exact() -> None:
    module = FixedFakeQuantize(scale=grid.PIXEL_SCALE, zero_point=grid.PIXEL_ZERO_POINT)
    pixels = torch.arange(256.0)
    assert torch.equal(module(pixels + 1e-3), pixels)
    assert torch.equal(module(torch.tensor([-7.0, 300.0])), torch.tensor([0.0, 255.0]))
    scale, zero_point = module.calculate_qparams()
    assert (scale.item(), zero_point.item()) == (1.0, -128)


@settings(deadline=None)
@given(factor=st.sampled_from([0.5, 2.0, 8.0]), channels=st.integers(1, 5))
def test_the_weight_scale_follows_the_weights(factor: float, channels: int) -> None:
    module = WeightFakeQuantize()
    weight = torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(channels))
    module.disable_observer()  # frozen observers or not
    module(weight)
    before = module.scale.clone()
    rounded = module(weight * factor)
    assert torch.equal(module.scale, before * factor)
    assert ((rounded - weight * factor).abs().amax((1, 2, 3)) <= 0.5001 * module.scale).all()
    assert torch.equal(rounded.abs().amax((1, 2, 3)), 127 * module.scale)
    assert torch.equal(module.calculate_qparams()[0], module.scale)
    assert not module.calculate_qparams()[1].any()


def test_weights_get_a_gradient_everywhere_inside() -> None:
    weight = torch.tensor([1.0, -0.4, 0.0, 0.7]).view(1, 4, 1, 1).requires_grad_()
    WeightFakeQuantize()(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(1, 4, 1, 1))


def test_grids_are_the_same_before_and_after_conversion() -> None:
    """Training's grids are those of the program."""
    wanted = {
        tuple(qparam.item() for qparam in module.calculate_qparams())
        for module in calibrated().modules()
        if isinstance(module, ActivationFakeQuantize)
    }
    nodes = in_graph(program().module(), quantized.quantize_per_tensor.default)
    assert {tuple(node.args[1:3]) for node in nodes} == wanted
    assert len(wanted) > 20


def test_int8_weights_are_the_fake_quantized_ones() -> None:
    """The same folded weights through the fake quantization and through conversion."""
    graph = calibrated()
    for module in graph.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(False)
            module.enable_fake_quant()
    fold.fold_batch_norms(graph)
    wanted: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda *call: wanted.append(call[2]))
        for module in graph.modules()
        if isinstance(module, WeightFakeQuantize)
    ]
    with torch.no_grad():
        graph(images(2))
    for hook in hooks:
        hook.remove()
    module = program().module()
    found = []
    for node in in_graph(module, quantized.dequantize_per_channel.default):
        arguments = [module.get_buffer(a.target) for a in node.args[:3]]
        assert arguments[0].dtype == torch.int8
        found.append(quantized.dequantize_per_channel(*arguments, *node.args[3:]))
    assert len(found) == len(wanted)
    # The two graphs list them in different orders.
    keys = [sorted((t.shape, t.flatten().tolist()) for t in ts) for ts in (found, wanted)]
    assert keys[0] == keys[1]


@settings(deadline=None)
@given(seed=st.integers(0, 99), low=st.floats(-4, 0), high=st.floats(0.1, 9))
def test_rounding_gives_the_numbers_of_torchs_kernel(seed: int, low: float, high: float) -> None:
    module = observed((low, high))
    module.disable_observer()
    x = 4 * torch.randn(500, generator=torch.Generator().manual_seed(seed))
    wanted = torch.fake_quantize_per_tensor_affine(x, module.scale, module.zero_point, -128, 127)
    assert torch.equal(module(x), wanted)


@settings(deadline=None)
@given(seed=st.integers(0, 99), channels=st.integers(1, 6))
def test_a_factor_rounds_as_the_product_would_be_rounded(seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(channels, 7, 3, 3, generator=generator)
    factor = torch.randn(channels, generator=generator)  # of either sign
    product = weight * factor[:, None, None, None]
    with_factor, of_product = WeightFakeQuantize(), WeightFakeQuantize()
    rounded = with_factor(weight, factor) * factor[:, None, None, None]
    wanted = of_product(product)
    assert torch.equal(with_factor.scale, of_product.scale)
    # The same step for every weight, unless its value lies between two of them to the last bit.
    steps = (rounded - wanted) / of_product.scale[:, None, None, None]
    off = steps.abs() > 1e-3
    halves = (product / of_product.scale[:, None, None, None]).remainder(1)
    assert ((halves - 0.5).abs()[off] < 1e-4).all()


def test_a_channel_of_factor_zero_vanishes() -> None:
    rounded = WeightFakeQuantize()(torch.ones(2, 1, 1, 1), torch.tensor([0.0, 1.0]))
    assert torch.isfinite(rounded).all()
    assert rounded[1].item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("rounds", [True, False])
def test_a_rectifying_grid_stands_for_the_relu_before_it(rounds: bool) -> None:
    x = torch.linspace(-3, 2, 101)
    apart, merged = ActivationFakeQuantize(), ActivationFakeQuantize()
    merged.rectifies = True
    for module in (apart, merged):
        module.enable_fake_quant(rounds)
    for batch in (x, 2 * x, -x.abs()):  # the last one is all below zero
        assert torch.equal(merged(batch), apart(batch.relu()))
        assert torch.equal(merged.scale, apart.scale)
        assert torch.equal(merged.low, apart.low)
        assert torch.equal(merged.high, apart.high)


def test_a_gradient_may_be_asked_for_after_the_grid_has_moved() -> None:
    module = observed((-1.0, 1.0))
    module.disable_observer()
    x = torch.tensor([-2.0, 0.5, 2.0], requires_grad=True)
    out = module(x)
    module.scale.mul_(100)
    out.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 0.0]))
