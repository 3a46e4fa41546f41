"""Weights of few bits: their grids, what they learn, and the whole numbers in the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx

from pipeline.compress.quantization import few_bits, grid, qat, steps
from pipeline.compress.quantization.blocks import by_weight
from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize, only_round
from pipeline.compress.quantization.few_bits import (
    FewBits,
    few_bit_layers,
    is_pointwise,
    rounding_of,
    take_forms,
    weighted_layers,
)
from pipeline.compress.quantization.fold import quantized_program
from pipeline.compress.quantization.palettes import with_zero
from pipeline.compress.quantization.steps import nearest_steps
from pipeline.formats.weight_blocks import in_blocks
from pipeline.networks.checkpoints import save_checkpoint
from pipeline.recipe.weight_forms import PALETTES, WEIGHT_FORMS, WeightForm
from tests.making.graphs import EXAMPLE, aten, attribute, calibrated, in_graph, prepared, quantized
from tests.making.networks import images

FEWER: tuple[WeightForm, ...] = WEIGHT_FORMS[1:]


def weights(seed: int = 0, inputs: int = 64) -> Tensor:
    """A layer whose channels have very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(12, inputs, 3, 3, generator=generator)
        * torch.logspace(-2, 0, 12)[:, None, None, None]
    )


def rounding(form: WeightForm, weight: Tensor) -> FewBits:
    module = rounding_of(weight, form, WeightFakeQuantize())
    module.enable_observer(False)
    module.enable_fake_quant(True)
    return module


def codes(rounded: Tensor, module: WeightFakeQuantize) -> Tensor:
    found = rounded / module.scale.reshape(-1, *[1] * (rounded.dim() - 1))
    assert torch.allclose(found, found.round(), atol=1e-3)
    return found.round()


def allowed(found: Tensor, form: WeightForm) -> bool:
    """Whether whole numbers are those of a form."""
    if form == "int4":
        return bool(found.abs().max() <= 7)
    if form == "int4_blocks":
        return in_blocks(found.to(torch.int8).numpy()) is not None
    values = {0, *found.unique().tolist()}
    return len(values) <= PALETTES[form] and max(map(abs, values)) <= 127


# Grids


def test_steps_are_those_of_the_least_error() -> None:
    weight = weights()
    steps = nearest_steps(weight)
    rows = weight.flatten(1)

    def errors(tried: Tensor) -> Tensor:
        found = (rows / tried[:, None]).round().clamp(-7, 7) * tried[:, None]
        return (found - rows).square().sum(1)

    best = torch.stack([errors(steps * factor) for factor in torch.linspace(0.3, 3, 300)]).amin(0)
    assert (errors(steps) <= 1.02 * best).all()
    assert (errors(steps) < 0.8 * errors(rows.abs().amax(1) / 7)).any(), (
        "the largest may be cut off"
    )


def test_inputs_that_matter_decide_the_steps() -> None:
    weight = torch.tensor([[0.07, 0.069, 1.0, 1.0]])
    importance = torch.tensor([[1.0, 1.0, 1e-9, 1e-9]])
    alike, weighted = nearest_steps(weight), nearest_steps(weight, importance=importance)
    assert weighted < alike
    rounded = (weight / weighted[:, None]).round().clamp(-7, 7) * weighted[:, None]
    assert (rounded - weight)[0, :2].abs().max() < 0.005


@pytest.mark.parametrize("form", FEWER)
def test_rounded_weights_are_whole_numbers_of_float16_scales(form: WeightForm) -> None:
    weight = weights()
    module = rounding(form, weight)
    rounded = module(weight)
    assert torch.equal(module.scale, module.scale.half().float())
    assert allowed(codes(rounded, module), form)
    assert (rounded - weight).norm() < 0.2 * weight.norm()


@pytest.mark.parametrize("form", FEWER)
def test_more_values_are_nearer(form: WeightForm) -> None:
    weight = weights()
    apart = {f: float((rounding(f, weight)(weight) - weight).detach().norm()) for f in FEWER}
    assert apart["palette64"] == min(apart.values())
    assert apart["palette64"] < 0.5 * apart["palette16"]


def test_steps_of_blocks_are_whole_multiples() -> None:
    """Weights that are large in some blocks and small in others: nearer than with one step."""
    weight = weights() * (1 + torch.arange(64) // 32 * 5)[None, :, None, None]
    one, several = (rounding(form, weight) for form in ("int4", "int4_blocks"))
    rounded = several(weight)
    found = in_blocks(codes(rounded, several).to(torch.int8).numpy())
    assert found is not None
    assert found.multiples.shape == (12, 2)
    assert (found.multiples[:, 1] > 2 * found.multiples[:, 0]).all()
    assert (
        (several.scale[:, None] * torch.arange(1, 17))
        .half()
        .float()
        .div(several.scale[:, None])
        .equal(torch.arange(1, 17).expand(12, 16).float())
    ), "exact in float16"
    assert (rounded - weight).norm() < 0.9 * (one(weight) - weight).norm()
    alone = rounding("int4_blocks", weight[:, :1])  # a block for all inputs
    assert alone(weight[:, :1]).equal(rounding("int4_blocks", weight[:, :1])(weight[:, :1]))
    assert codes(alone(weight[:, :1]), alone).abs().max() <= 7


@pytest.mark.parametrize("form", FEWER)
def test_rounding_as_folded_is_rounding_what_is_folded(form: WeightForm) -> None:
    """Negative factors too, as batch normalisation may have them."""
    weight = weights()
    factor = torch.linspace(-1.5, 2.0, 12)
    module = rounding(form, weight)
    rounded = module(weight, factor)
    found = codes(rounded * factor.abs()[:, None, None, None], module)
    assert allowed(found, form)
    again = rounding(form, weight)
    folded = weight * factor.abs()[:, None, None, None]
    again.folded(factor)
    assert torch.equal(codes(again(folded), again), found)


@pytest.mark.parametrize("form", FEWER)
def test_what_is_stored_is_rounded_to_itself(form: WeightForm) -> None:
    weight = weights()
    module = rounding(form, weight)
    wanted = module(weight).detach().clone()
    module.enable_fake_quant(False)
    module.store(weight)
    assert torch.equal(weight, wanted)
    assert torch.equal(module(weight), wanted)


@pytest.mark.parametrize("form", FEWER)
def test_zeros_stay_zero(form: WeightForm) -> None:
    weight = weights()
    zero = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    weight[zero] = 0
    assert (rounding(form, weight)(weight)[zero] == 0).all()


def test_a_channel_of_zeros_is_no_fault() -> None:
    weight = weights()
    weight[3] = 0
    for form in FEWER:
        module = rounding(form, weight)
        rounded = module(weight)
        assert torch.isfinite(rounded).all()
        assert (rounded[3] == 0).all()
        assert (module.scale > 0).all()


# What is learned


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_gradient_of_a_step_is_that_of_what_rounding_does(blocks: int) -> None:
    """Beside finite differences of the function whose rounding is held, as the paper has it."""
    weight = weights().double()
    step = (weight.flatten(1).abs().amax(1) / 9).requires_grad_()  # the largest are cut off
    given = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    multiples = 1 + (torch.arange(12 * blocks) % 3).reshape(12, blocks).double()
    times = by_weight(multiples, weight) / multiples.amax()
    leaf = weight.clone().requires_grad_()
    steps._RoundToLearned.apply(leaf, step, step.detach(), times, 7).mul(given).sum().backward()
    at = step.detach()[:, None, None, None] * times
    held = (weight / at).round() - weight / at
    inside = (weight / at).abs() <= 7

    def surrogate(steps: Tensor) -> Tensor:
        each = steps[:, None, None, None] * times
        whole = torch.where(inside, weight / each + held, 7 * weight.sign())
        return (whole * each * given).flatten(1).sum(1)

    small = 1e-6
    slope = (surrogate(step.detach() + small) - surrogate(step.detach() - small)) / (2 * small)
    number = weight[0].numel()
    assert step.grad is not None
    assert torch.allclose(step.grad, slope / (number * 7) ** 0.5, rtol=1e-3, atol=1e-6)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, given * inside)
    assert not inside.all()


def test_the_gradient_of_a_palette_is_the_sum_over_the_weights_of_each_value() -> None:
    weight = weights().double()
    step = weight.flatten(1).abs().amax(1) / 127
    learned = (torch.tensor([-90.0, -31, -8, 0.2, 11, 40, 127]).double() / 127).requires_grad_()
    given = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    leaf = weight.clone().requires_grad_()
    few_bits._RoundToPalette.apply(leaf, learned, step).mul(given).sum().backward()
    by_channel = step[:, None, None, None]
    values = with_zero(learned.detach() * 127)
    index = ((weight / by_channel)[..., None] - values).abs().argmin(-1)

    def surrogate(palette: Tensor) -> float:
        return float((palette[index] * 127 * by_channel * given).sum())

    small = 1e-6
    assert learned.grad is not None
    for place in range(len(values)):
        move = torch.zeros_like(values)
        move[place] = small
        slope = surrogate(learned.detach() + move) - surrogate(learned.detach() - move)
        wanted = slope / (2 * small) / (weight.numel() / 7 * 127) ** 0.5
        assert float(learned.grad[place]) == pytest.approx(wanted, rel=1e-4)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, given)


@pytest.mark.parametrize("form", FEWER)
def test_steps_and_palettes_learn(form: WeightForm) -> None:
    """From bad ones, they alone come nearer to the weights, which are held."""
    weight = weights(inputs=8)
    weight /= weight.flatten(1).abs().amax(1)[:, None, None, None]
    module = rounding(form, weight)
    (learned,) = module.parameters()
    with torch.no_grad():
        learned.mul_(1.4)
    optimizer = torch.optim.Adam([learned], 0.003)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (module(weight) - weight).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert allowed(codes(module(weight), module), form)


# In graphs


def with_forms(forms: dict[str, WeightForm] | WeightForm, graph: fx.GraphModule) -> fx.GraphModule:
    names = [layer.name for layer in weighted_layers(graph)]
    take_forms(graph, dict.fromkeys(names, forms) if isinstance(forms, str) else forms)
    only_round(graph)
    return graph


def mixed(graph: fx.GraphModule) -> dict[str, WeightForm]:
    names = [layer.name for layer in weighted_layers(graph)]
    return {name: WEIGHT_FORMS[place % len(WEIGHT_FORMS)] for place, name in enumerate(names)}


def test_only_the_layers_that_are_named_get_fewer_bits() -> None:
    graph = prepared()
    forms = mixed(graph)
    with_forms(forms, graph)
    found = {layer.name: module.form for layer, module in few_bit_layers(graph)}
    assert found == {name: form for name, form in forms.items() if form != "int8"}
    assert len(found) > 10


def test_layers_of_one_pixel_are_told_apart() -> None:
    graph = prepared()
    found = {layer.name for layer in weighted_layers(graph) if is_pointwise(layer.convolutions[0])}
    names = [layer.name for layer in weighted_layers(graph)]
    assert found == {name for name in names if "fc" in name}, "attention, and the classifier"
    assert len(found) == 5


@pytest.mark.parametrize("form", FEWER)
def test_a_saved_graph_answers_the_same(form: WeightForm, tmp_path: Path) -> None:
    graph = with_forms(form, calibrated())
    for layer, module in few_bit_layers(graph):  # as training leaves them
        with torch.no_grad():
            for parameter in module.parameters(recurse=False):
                parameter.mul_(1.01)
            layer.weight.mul_(0.99)
    wanted = graph(images(4))
    save_checkpoint(graph.state_dict(), tmp_path / "weights.safetensors", None)
    fresh = with_forms(form, prepared())
    qat.load_state(fresh, load_file(tmp_path / "weights.safetensors"))
    qat.set_training(fresh, False)
    only_round(fresh)
    assert torch.equal(fresh(images(4)), wanted)


@pytest.mark.parametrize("form", [*FEWER, "mixed"])
def test_the_program_holds_only_whole_numbers_of_the_form(form: WeightForm) -> None:
    """Batch normalisations with negative factors, and weights of which many are zero."""
    graph = calibrated()
    forms = mixed(graph) if form == "mixed" else form
    norms = in_graph(graph, aten.batch_norm.default)
    for norm in norms:
        gamma = attribute(graph, norm.args[1])
        gamma[::2] *= -1
    for layer in weighted_layers(graph):
        if layer.weight.shape[1] > 1:  # not a channel as a whole
            layer.weight[:, ::3] = 0
    with_forms(forms, graph)
    names = [layer.module.form for layer in weighted_layers(graph)]
    program = quantized_program(graph, EXAMPLE)
    convolutions = [n for n in program.graph.nodes if n.target is aten.conv2d.default]
    assert len(convolutions) == len(names)
    for conv, form_of in zip(convolutions, names, strict=True):
        one = codes_in(program, conv.args[1])
        assert one.dtype == torch.int8
        assert form_of == "int8" or allowed(one, form_of), conv.name
        assert one.shape[1] == 1 or (one[:, ::3] == 0).all()
    x = images(4)
    with torch.no_grad():
        step = float(next(n for n in program.graph.nodes if n.op == "output").args[0][0].args[1])
        apart = (program.module(check_guards=False)(x) - graph(x)).abs() / step
    assert float(apart.median()) <= 1
    assert norms


def codes_in(program: torch.export.ExportedProgram, weight: fx.Node) -> Tensor:
    assert weight.target is quantized.dequantize_per_channel.default
    tensors = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    return program.state_dict[str(tensors[weight.args[0].name])]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", FEWER)
def test_scales_are_raised_and_weights_stay_allowed(form: WeightForm) -> None:
    weight = weights()
    module = rounding(form, weight)
    smallest = 1.5 * module(weight).new_tensor(module.scale.tolist())
    module.raise_to(weight, smallest)
    rounded = module(weight)
    least = 2**-6 if form == "int4_blocks" else 1e-3
    assert (module.scale >= grid.float16_down(smallest) * (1 - least)).all()
    assert allowed(codes(rounded, module), form)
