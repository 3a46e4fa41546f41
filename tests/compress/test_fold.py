"""Folding changes no number that it should not; the comparison that says so can fail."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from pipeline.compress.quantization import program as program_file
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import (
    bias_to_grid,
    drop_clamps,
    float_program,
    float_twin,
    fold_batch_norms,
    quantized_program,
)
from pipeline.recipe.input_shape import square
from tests.making.graphs import EXAMPLE, attribute, calibrated, in_graph
from tests.making.networks import SIDE, VARIANTS, deploy, images, randomise, relative_difference
from tests.making.programs import program

pytestmark = pytest.mark.slow

aten = torch.ops.aten
LIMIT = 1e-5


def unrounded(variant: str) -> fx.GraphModule:
    """A QAT graph that computes in float; all else is as in training's last phase."""
    graph = calibrated(variant)
    for module in graph.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(False)
            module.enable_fake_quant(False)
    return graph


def change_by_folding(variant: str, spoil: Callable[[fx.GraphModule], None]) -> float:
    """How far the output is from the unfolded graph's when `spoil` comes just before folding."""
    graph, x = unrounded(variant), images(4)
    with torch.no_grad():
        wanted = graph(x)
        spoil(graph)
        fold_batch_norms(graph)
        assert not in_graph(graph, aten.batch_norm.default)
        return relative_difference(graph(x), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_a_qat_graph_changes_nothing(variant: str) -> None:
    assert change_by_folding(variant, lambda graph: None) <= LIMIT


def argument_of_norms(index: int, change: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def spoil(graph: fx.GraphModule) -> None:
        for norm in in_graph(graph, aten.batch_norm.default):
            tensor = attribute(graph, norm.args[index])
            tensor.copy_(change(tensor))

    return spoil


def other_eps(graph: fx.GraphModule) -> None:
    for norm in in_graph(graph, aten.batch_norm.default):
        norm.args = (*norm.args[:7], 1e-2, *norm.args[8:])


def without_one_bias(graph: fx.GraphModule) -> None:
    """The bias of fc1, which comes before a batch normalisation."""
    name = next(name for name, _ in graph.named_parameters() if name.endswith("fc1.bias"))
    graph.get_parameter(name).data.zero_()


@pytest.mark.parametrize(
    "spoil",
    [
        argument_of_norms(1, lambda gamma: gamma * 1.01),
        argument_of_norms(2, torch.zeros_like),
        argument_of_norms(3, torch.zeros_like),
        argument_of_norms(4, torch.ones_like),
        other_eps,
        without_one_bias,
    ],
    ids=["gamma", "beta", "mean", "variance", "eps", "bias"],
)
def test_a_wrong_fold_is_found(spoil: Callable[[fx.GraphModule], None]) -> None:
    assert change_by_folding("plain", spoil) > 100 * LIMIT


@pytest.mark.parametrize("variant", ["plain", "basic_four_splits"])
def test_the_float_program_is_the_network(variant: str) -> None:
    network = deploy(variant)
    exported = float_program(network, EXAMPLE)
    module = exported.module(check_guards=False)
    assert not in_graph(module, aten.batch_norm.default)
    x = images(5)
    with torch.no_grad():
        wanted = network.eval()(x)
        assert relative_difference(module(x), wanted) <= LIMIT
        for index in range(5):
            one = module(x[index : index + 1])
            assert relative_difference(one, wanted[index : index + 1]) <= LIMIT


class OtherOrders(nn.Module):
    """A convolution that a batch normalisation and a sum read, and one that comes after its own."""

    def __init__(self, padding: str | int = 1, *, affine: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=padding)
        self.norm = nn.BatchNorm2d(8, affine=affine)
        self.before = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.before(torch.relu(self.norm(y) + y))
        return self.last(z.mean((2, 3), keepdim=True)).flatten(1)


class Chain(nn.Module):
    """A convolution, its batch normalisation and a classifier."""

    def __init__(self, padding: str | int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=padding)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.stem(x)))
        return self.last(z.mean((2, 3), keepdim=True)).flatten(1)


def convolutions(exported: torch.export.ExportedProgram) -> int:
    targets = {aten.conv2d.default, aten.conv2d.padding}
    return sum(node.target in targets for node in exported.graph.nodes)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_that_is_not_the_only_reader_is_not_folded(affine: bool) -> None:
    """Nor one that follows no convolution: each becomes a convolution of its own."""
    torch.manual_seed(0)
    network, x = OtherOrders(affine=affine).train(), images(4)
    for seed in range(5):
        network(images(8, seed))  # running statistics that are not those of the identity
    network.eval()
    exported = float_program(network, EXAMPLE)
    module = exported.module(check_guards=False)
    assert not in_graph(module, aten.batch_norm.default)
    assert convolutions(exported) == 4
    with torch.no_grad():
        assert relative_difference(module(x), network(x)) <= LIMIT


@pytest.mark.parametrize("padding", [1, "same"])
def test_a_batch_norm_is_folded_whatever_names_the_padding(padding: str | int) -> None:
    torch.manual_seed(0)
    network, x = Chain(padding).eval(), images(4)
    randomise(network)
    exported = float_program(network, EXAMPLE)
    assert convolutions(exported) == 2
    with torch.no_grad():
        assert relative_difference(exported.module(check_guards=False)(x), network(x)) <= LIMIT


@pytest.mark.parametrize("affine", [True, False])
def test_what_is_no_convolutions_own_is_quantized_as_one(affine: bool) -> None:
    torch.manual_seed(0)
    network = OtherOrders(affine=affine).eval()
    randomise(network)
    graph = qat.prepare(copy.deepcopy(network), square(SIDE))
    x = images(8)
    qat.calibrate(graph, lambda: [x])
    with torch.no_grad():
        twin = float_twin(graph, EXAMPLE).module(check_guards=False)(x)
        assert relative_difference(twin, network(x)) <= LIMIT
        program = quantized_program(graph, EXAMPLE).module(check_guards=False)
        assert relative_difference(program(x), network(x)) <= 0.1


def test_a_program_holds_no_tensor_that_nothing_reads() -> None:
    torch.manual_seed(0)
    network, x = Chain(1).eval(), images(4)
    randomise(network)
    graph = qat.prepare(copy.deepcopy(network), square(SIDE))
    qat.calibrate(graph, lambda: [x])
    folded = {"folded_weight_0", "folded_bias_0", "last.weight", "last.bias"}
    programs = [float_program(network, EXAMPLE), float_twin(graph, EXAMPLE)]
    assert [set(found.state_dict) for found in programs] == [folded, folded]
    for found in (*programs, quantized_program(graph, EXAMPLE)):
        assert all(node.users for node in found.graph.nodes if node.op == "placeholder")


class Shared(nn.Module):
    """One convolution that two tensors of other ranges go through."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        large = torch.relu(self.stem(x))
        small = torch.nn.functional.max_pool2d(large, 2).mean((2, 3), keepdim=True)
        both = self.head(large).mean((2, 3), keepdim=True) + self.head(small)
        return self.last(both).flatten(1)


def test_a_shared_bias_lies_on_the_grid_of_each_of_its_convolutions() -> None:
    torch.manual_seed(0)
    graph = qat.prepare(Shared(), square(SIDE))
    qat.calibrate(graph, lambda: [images(8)])
    module = quantized_program(graph, EXAMPLE).module(check_guards=False)
    scales = []
    for conv in biased(module):
        scale, bias = bias_scale(module, conv), attribute(module, conv.args[2])
        assert torch.equal((torch.round(bias.double() / scale) * scale).float(), bias)
        scales.append(scale)
    assert len(scales) == 4
    assert not torch.equal(scales[1], scales[2])


def bias_scale(module: fx.GraphModule, conv: fx.Node) -> Tensor:
    activation, weight = conv.args[:2]
    scales = attribute(module, weight.args[1])  # type: ignore[union-attr]
    return scales.double() * activation.args[1]  # type: ignore[union-attr, operator]


def biased(module: fx.GraphModule) -> list[fx.Node]:
    convs = in_graph(module, aten.conv2d.default)
    return [conv for conv in convs if len(conv.args) > 2 and conv.args[2] is not None]


@pytest.mark.parametrize("variant", VARIANTS)
def test_biases_lie_on_the_grid_of_their_products(variant: str) -> None:
    module = program(variant).module()
    assert len(biased(module)) > 8
    for conv in biased(module):
        scale, bias = bias_scale(module, conv), attribute(module, conv.args[2])
        steps = torch.round(bias.double() / scale)
        assert torch.equal((steps * scale).float(), bias)
        assert steps.abs().max() < 2**31


def converted(variant: str) -> fx.GraphModule:
    graph = calibrated(variant)
    for module in graph.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(False)
            module.enable_fake_quant()
    fold_batch_norms(graph)
    with torch.no_grad():
        graph(EXAMPLE)
    model = convert_pt2e(graph)
    assert isinstance(model, fx.GraphModule)
    return model


@pytest.mark.parametrize("variant", ["plain", "basic"])
def test_dropping_clamped_relus_changes_no_bit(variant: str) -> None:
    model, x = converted(variant), images(4)
    with torch.no_grad():
        wanted = model(x)
        assert len(in_graph(model, aten.relu.default)) > 8
        drop_clamps(model)
        assert not in_graph(model, aten.relu.default)
        assert torch.equal(model(x), wanted)


def test_a_relu_that_nothing_clamps_stays() -> None:
    """One whose grid goes below zero, and one whose number is used as float."""
    model = converted("plain")
    first, second, *_ = in_graph(model, aten.relu.default)
    users: list[Any] = [next(iter(relu.users)) for relu in (first, second)]
    users[0].args = (*users[0].args[:2], -100, *users[0].args[3:])
    users[1].replace_all_uses_with(second)
    drop_clamps(model)
    assert in_graph(model, aten.relu.default) == [first, second]


def test_biases_move_to_float16_and_by_half_a_step_at_most() -> None:
    model = converted("plain")
    convs = biased(model)
    before = [attribute(model, conv.args[2]).clone() for conv in convs]
    bias_to_grid(model)
    moved = 0
    for conv, bias in zip(convs, before, strict=True):
        found = attribute(model, conv.args[2]).double()
        steps = (found - bias.half()) / bias_scale(model, conv)
        # A float32 bias of many steps is itself rounded to 24 bits.
        assert (steps.abs() <= 0.5 + 1e-3).all(), conv.name
        moved += int((steps != 0).sum())
    assert moved > 100


@pytest.mark.parametrize("variant", ["plain", "four_splits"])
def test_batches_of_one_and_five_agree(variant: str) -> None:
    """Image by image; sums in another order may move a number over a rounding edge."""
    module = program(variant).module(check_guards=False)
    (output,) = next(n for n in module.graph.nodes if n.op == "output").all_input_nodes
    step = output.args[1]
    x = images(5, seed=3)
    with torch.no_grad():
        together = module(x)
        alone = torch.cat([module(x[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 5)
    assert (together - alone).abs().max() <= 2.01 * step
    assert together.std(0).min() > 2 * step  # the images do differ


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_program_is_near_the_network(variant: str) -> None:
    x = images(8)  # calibrated on these
    with torch.no_grad():
        wanted = deploy(variant).eval()(x)
        found = program(variant).module(check_guards=False)(x)
    assert relative_difference(found, wanted) <= 0.1


def test_a_program_is_the_same_after_saving(tmp_path: Any) -> None:
    program_file.save(program(), tmp_path / "program.pt2")
    read = program_file.load(tmp_path / "program.pt2")
    x = images(3)
    with torch.no_grad():
        assert torch.equal(read.module()(x), program().module()(x))
