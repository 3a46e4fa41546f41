"""The quantizer leaves no float island, shares grids where it must, refuses the unknown."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from pipeline.compress.quantization.fold import float_program
from pipeline.compress.quantization.quantizer import MobileQuantizer
from tests.making import programs
from tests.making.graphs import EXAMPLE, QUANTIZE, WEIGHT, activations, aten, compute_nodes, islands
from tests.making.networks import VARIANTS, deploy
from tests.making.programs import program

pytestmark = pytest.mark.slow

SHARES_GRID = {
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.slice.Tensor,
    aten.reshape.default,
}


def grid_of(node: fx.Node) -> tuple[Any, ...]:
    """The grid that an operation's output is written in."""
    grids = {tuple(user.args[1:3]) for user in node.users}
    assert len(grids) == 1
    return grids.pop()


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_float_island(variant: str) -> None:
    graph = program(variant).graph
    assert islands(graph) == []
    used = {node.target for node in compute_nodes(graph)}
    splits = VARIANTS[variant].get("radix", 2)
    fixed = {aten.softmax.int, aten.reshape.default, aten.slice.Tensor}
    assert used == {
        *(aten.conv2d.default, aten.add.Tensor, aten.mul.Tensor, aten.mean.dim),
        *(aten.max_pool2d.default, aten.flatten.using_ints),
        *(fixed if splits > 2 else {aten.sigmoid.default}),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_grids_are_shared_where_a_runtime_cannot_change_them(variant: str) -> None:
    graph = program(variant).graph
    for node in compute_nodes(graph):
        if node.target in SHARES_GRID:
            assert {tuple(a.args[1:3]) for a in activations(node)} == {grid_of(node)}, node.name
        if node.target in {aten.sigmoid.default, aten.softmax.int}:
            assert grid_of(node) == (1 / 256, -128)
    scales = [node.args[1] for node in graph.nodes if node.target is QUANTIZE]
    assert all(torch.tensor(s).half().item() == s for s in scales)


def test_pixels_come_in_on_their_own_grid() -> None:
    """Calibration does not move it, and the integer is the pixel less 128."""
    graph = programs.quantized("radix2", pixels=True).program.graph
    assert islands(graph) == []
    (image,) = (n for n in graph.nodes if n.target is QUANTIZE and n.args[0].op == "placeholder")
    assert image.args[1:3] == (1.0, -128)
    normalize = next(node for node in graph.nodes if node.target is aten.conv2d.default)
    assert normalize.args[0].args[0] is image
    assert grid_of(normalize) != (1.0, -128)
    pixels = torch.arange(256.0)
    assert torch.equal(image.target(pixels, *image.args[1:]).float(), pixels - 128)


@pytest.mark.parametrize("variant", ["plain", "four_splits"])
def test_weights_are_symmetric_and_reach_127(variant: str) -> None:
    module = program(variant).module()
    for node in module.graph.nodes:
        if node.target is WEIGHT:
            weight, scale, zero_point = (module.get_buffer(a.target) for a in node.args[:3])
            assert node.args[3:] == (0, -127, 127, torch.int8)
            assert not zero_point.any()
            assert (weight.int().abs().flatten(1).amax(1) == 127).all()
            assert torch.equal(scale.half().float(), scale)


def test_islands_are_found() -> None:
    """The check can fail: a program that is not quantized is islands all over."""
    graph = float_program(deploy(), EXAMPLE).graph
    assert len(islands(graph)) > len(compute_nodes(graph))


class Odd(nn.Module):
    """A convolution, then any operation."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.operation(self.conv(x))
        return out


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (torch.sin, "aten.sin.default"),
        (lambda x: x - x.flip(0), "aten.flip.default"),
        (lambda x: nn.functional.avg_pool2d(x, 2), "aten.avg_pool2d.default"),
        (lambda x: 1 - x, "aten.rsub.Scalar"),
        (lambda x: nn.functional.softplus(x), "aten.softplus.default"),
    ],
)
def test_an_unknown_operation_is_refused_by_name(operation: Any, name: str) -> None:
    exported = torch.export.export(Odd(operation).train(), (torch.randn(2, 3, 8, 8),)).module()
    with pytest.raises(NotImplementedError, match=rf"{name} .*pipeline/.*/quantizer\.py"):
        prepare_qat_pt2e(exported, MobileQuantizer())


def test_known_operations_are_taken() -> None:
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(Odd(lambda x: x.mean((2, 3))).train(), (x,)).module()
    graph = prepare_qat_pt2e(exported, MobileQuantizer())
    graph(x)
    assert islands(convert_pt2e(graph).graph) == []
