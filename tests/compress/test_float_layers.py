"""What a recipe leaves in float is not rounded, in training or in the program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.base.errors import InputError
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize
from pipeline.compress.quantization.fold import float_twin, quantized_program
from pipeline.formats.file_facts import conv_macs, learned_scales, program_macs
from pipeline.measure.layers import layers_of, output_scale
from pipeline.measure.left_in_float import left_in_float
from pipeline.networks.lowering.places import FloatPlaces
from tests.making.floats import between, noise, prepared, program, six_layers
from tests.making.graphs import DEQUANTIZE, QUANTIZE, WEIGHT, aten

pytestmark = pytest.mark.slow

CONV = conv_macs((16, 16, 3, 3), 4 * 4)
STEM = conv_macs((16, 3, 3, 3), 8 * 8)
WHOLE = STEM + 4 * CONV + 160


def places(found: torch.export.ExportedProgram) -> list[str]:
    return [layer.module for layer in left_in_float(found)]


def convolutions(found: torch.export.ExportedProgram) -> list[fx.Node]:
    return [node for node in found.graph.nodes if node.target is aten.conv2d.default]


def test_a_convolution_in_float_stands_between_a_dequantize_and_a_quantize() -> None:
    found = program("blocks.0.conv1")
    conv = convolutions(found)[1]
    assert conv.args[0].target is DEQUANTIZE  # type: ignore[union-attr]
    assert conv.args[1].op == "placeholder", "its weights are not rounded"  # type: ignore[union-attr]
    assert [user.target for user in conv.users] == [QUANTIZE], "its ReLU is the end of that grid"
    assert [c.args[1].target is WEIGHT for c in convolutions(found)] == [  # type: ignore[union-attr]
        *(True, False, True, True, True, True)
    ]
    assert places(found) == ["blocks.0.conv1"]
    assert left_in_float(found)[0].macs == CONV
    assert program_macs(found) == (WHOLE - CONV, WHOLE)


def test_its_weights_are_the_networks_with_batch_normalisation_folded() -> None:
    network = six_layers()
    block = network.blocks[0]  # type: ignore[index]
    found = program("blocks.0.conv1")
    norm = block.bn1
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    stored = found.state_dict | found.constants
    tensors = {s.arg.name: s.target for s in found.graph_signature.input_specs if s.target}
    weight, bias = (stored[tensors[a.name]] for a in convolutions(found)[1].args[1:3])
    wanted = block.conv1.weight * factor[:, None, None, None]
    assert torch.allclose(weight, wanted, rtol=1e-6, atol=0)
    assert torch.allclose(bias, norm.bias - norm.running_mean * factor, rtol=1e-5, atol=1e-6)


def test_numbers_pass_between_float_layers_as_they_are() -> None:
    found = program("blocks.0")
    first, second = convolutions(found)[1:3]
    (relu,) = first.users
    assert relu.target is aten.relu.default
    assert second.args[0] is relu
    (total,) = second.users
    assert total.target is aten.add.Tensor
    assert [user.target for user in total.users] == [QUANTIZE]
    assert program_macs(found) == (WHOLE - 2 * CONV, WHOLE)
    names = {layer.operation: layer.inputs for layer in layers_of(found)}
    pooled = next(layer.name for layer in layers_of(found) if layer.operation == "max_pool2d")
    assert names["add"] == (pooled, pooled), "what is read past the float layers"


def test_the_image_and_the_answers_are_float_where_their_layers_are() -> None:
    found = program("stem.0", "fc")
    assert convolutions(found)[0].args[0].op == "placeholder"  # type: ignore[union-attr]
    assert output_scale(found) is None
    assert layers_of(found)[0].operation != "image"
    assert program_macs(found) == (4 * CONV, WHOLE)
    assert output_scale(program("stem.0")) is not None


def test_one_grid_serves_all_int8_readers_of_a_float_layer() -> None:
    found = program("blocks.0")
    (total,) = (n for n in found.graph.nodes if n.name == "add")
    (rounding,) = total.users
    readers = {reader.target for one in rounding.users for reader in one.users}
    assert readers == {aten.conv2d.default, aten.add.Tensor}


def test_the_float_twin_has_the_same_operations() -> None:
    graph = prepared("blocks.0.conv1")
    qat.calibrate(graph, lambda: [noise(8)])
    qat.set_training(graph, False)
    twin = float_twin(graph, noise(2))
    found = quantized_program(graph, noise(2))
    assert left_in_float(found)
    assert not learned_scales(twin)[0]
    images = noise(4, seed=3)
    with torch.no_grad():
        exact, rounded = (one.module(check_guards=False)(images) for one in (twin, found))
    assert 0 < float((exact - rounded).abs().max()) < 0.1 * float(exact.abs().max())


def test_training_rounds_nothing_of_it() -> None:
    graph = prepared("blocks.0.conv1")
    rounded = {
        node.args[0].target
        for node in graph.graph.nodes
        if node.op == "call_module"
        and isinstance(graph.get_submodule(node.target), WeightFakeQuantize)
    }
    assert rounded == {
        *("stem.0.weight", "blocks.0.conv2.weight", "fc.weight"),
        *("blocks.1.conv1.weight", "blocks.1.conv2.weight"),
    }
    qat.calibrate(graph, lambda: [noise(8)])
    qat.merge_rounding(graph)
    qat.set_training(graph, True)
    graph(noise(8)).square().sum().backward()
    weight = graph.get_parameter("blocks.0.conv1.weight")
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


class Dropped(nn.Module):
    """A float layer, a dropout of its own, and an int8 layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 1), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("operation", "kept"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)), True),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)), False),
    ],
)
def test_what_has_no_weights_goes_with_what_is_around_it(operation: nn.Module, kept: bool) -> None:
    patterns = ("operation.0", "operation.2") if kept else ("operation.0", "operation.1")
    found = program(*patterns, model=between(operation))
    (pool,) = (n for n in found.graph.nodes if n.target is aten.max_pool2d.default)
    assert (pool.args[0].target is DEQUANTIZE) is not kept
    assert ({user.target for user in pool.users} == {QUANTIZE}) is not kept


def test_dropout_behind_a_float_layer_is_behind_its_rounding() -> None:
    graph = prepared("operation", model=between(Dropped()))
    (dropout,) = (n for n in graph.graph.nodes if n.target is aten.dropout.default)
    assert dropout.args[0].op == "call_module"
    assert [user.target for user in dropout.users] == [aten.conv2d.default]


def test_an_int8_concatenation_has_one_grid_for_a_float_layer_too() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(8, 4, 1)
            self.two = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.one(x), 9 * self.two(x)], 1)

    found = program("operation.one", model=between(Beside()))
    (cat,) = (n for n in found.graph.nodes if n.target is aten.cat.default)
    grids = {tuple(one.args[1:3]) for one in (*cat.args[0], *cat.users)}
    assert len(grids) == 1
    assert places(found) == ["operation.one"]


@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        (("block.1",), r"'block.1', which is no module .* near are blocks\.1, blocks\.0, blocks;"),
        (("blocks.0", "zzz.*"), r"'zzz\.\*', which is no module .*; it has stem, stem\.0,"),
        (("pool",), "'pool', and nothing of it would stay in float: without weights of its own"),
        (("blocks.0.act",), "'blocks.0.act', and nothing of it would stay"),
        (("*",), "nothing with weights is left in int8; say target.precision: float"),
    ],
)
def test_patterns_that_leave_nothing_or_all_are_refused(
    patterns: tuple[str, ...], why: str
) -> None:
    with pytest.raises(InputError, match=rf"^qat\.float: .*{why}"):
        prepared(*patterns)


@pytest.mark.parametrize(
    ("pattern", "path", "holds"),
    [
        ("features.18.*", "features.18.0", True),
        ("features.18.*", "features.18", False),
        ("features.18", "features.18.0.conv", True),
        ("features.1", "features.18", False),
        ("*.conv1", "blocks.0.conv1", True),
        ("classifier", "classifier.3", True),
    ],
)
def test_a_module_holds_all_that_is_in_it(pattern: str, path: str, holds: bool) -> None:
    assert FloatPlaces((pattern,)).hold_path(path) is holds
    parts = path.split(".")
    stack: dict[str, Any] = {
        str(count): (".".join(parts[:count]), "") for count in range(len(parts) + 1)
    }
    node = fx.Graph().placeholder("x")
    node.meta["nn_module_stack"] = stack
    assert FloatPlaces((pattern,)).hold(node) is holds
