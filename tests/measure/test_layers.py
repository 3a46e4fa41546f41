"""Layer by layer: what program, float network and a file give, and whose fault a difference is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.commands.debug.layers import worst_first
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import float_twin, quantized_program
from pipeline.measure import layers
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.recipe.data import DigitsData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import pixel_values
from pipeline.tasks.images.load import load_dataset
from tests.making import networks, programs

pytestmark = pytest.mark.slow

Program = torch.export.ExportedProgram
EXAMPLE = torch.zeros(2, 3, networks.SIDE, networks.SIDE)


@pytest.fixture(scope="module", params=["radix1", "radix4"])
def both(request: pytest.FixtureRequest) -> tuple[Program, Program, str]:
    """A quantized program and its float network."""
    graph = qat.prepare(
        deploy_form(branch_form(programs.network(request.param))), square(networks.SIDE)
    )
    qat.calibrate(graph, lambda: [networks.images(32, seed=2)])
    twin = float_twin(graph, EXAMPLE)
    return quantized_program(graph, EXAMPLE), twin, request.param


def as_file(program: Program) -> Callable[[NDArray[np.float32]], dict[str, NDArray[np.int8]]]:
    """The trace of a file that is perfect."""

    def trace(images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
        found = layers.integers(program, torch.from_numpy(images))
        return {name: values.numpy().copy() for name, values in found.items()}

    return trace


def test_layers_say_where_they_stand(both: tuple[Program, Program, str]) -> None:
    program, _, variant = both
    found = layers.layers_of(program)
    by_operation = {layer.operation: layer for layer in found}
    assert found[0].title == "image"
    assert found[0].inputs == ()
    assert by_operation["conv2d"].title == "conv1.0 conv2d"
    assert by_operation["conv2d"].inputs == (found[0].name,)
    assert by_operation["mean"].module == "layer1.0"
    assert found[-1].operation == "flatten"
    assert len({layer.name for layer in found}) == len(found)
    assert len(by_operation) == len(found)
    names = [layer.name for layer in found]
    for index, layer in enumerate(found[1:], start=1):
        assert layer.inputs, layer
        assert set(layer.inputs) <= set(names[:index])
    assert ("softmax" in by_operation) == (variant == "radix4")


def test_a_float_program_has_no_layers() -> None:
    assert layers.layers_of(programs.unquantized("radix1").program) == ()


def test_integers_are_those_behind_the_logits(both: tuple[Program, Program, str]) -> None:
    program, _, _ = both
    images = programs.examples()
    last = layers.layers_of(program)[-1]
    numbers = layers.integers(program, images)
    assert all(values.dtype == torch.int8 for values in numbers.values())
    with torch.no_grad():
        logits = program.module(check_guards=False)(images)
    assert torch.equal((numbers[last.name].float() - last.zero_point) * last.scale, logits)


def test_the_float_twin_is_the_network(both: tuple[Program, Program, str]) -> None:
    program, twin, variant = both
    images = programs.examples()
    values = layers.float_values(program, twin, images)
    found = layers.layers_of(program)
    assert list(values) == [layer.name for layer in found]
    assert torch.equal(values[found[0].name], images)
    with torch.no_grad():
        wanted = programs.network(variant)(images)
    assert (values[found[-1].name] - wanted).abs().max() <= 1e-5
    numbers = layers.integers(program, images)
    for layer in found:  # rounding is all that lies between, so a wrong partner would show
        real = (numbers[layer.name].double() - layer.zero_point) * layer.scale
        noise = float((real - values[layer.name]).square().sum())
        assert layers.decibels(float(real.square().sum()), noise) > 12, layer.title


def test_an_image_may_be_called_like_a_function_of_pythons() -> None:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), *head)
    graph = qat.prepare(network, square(networks.SIDE))
    images = networks.images(8, seed=2)
    qat.calibrate(graph, lambda: [images])
    twin = float_twin(graph, EXAMPLE)
    program = quantized_program(graph, EXAMPLE)
    assert [str(name) for name in program.graph_signature.user_inputs] == ["input"]
    values = layers.float_values(program, twin, images)
    first = layers.layers_of(program)[0]
    assert first.title == "image"
    assert torch.equal(values[first.name], images)
    assert set(layers.integers(program, images)) == set(values)


def test_another_network_is_no_twin(both: tuple[Program, Program, str]) -> None:
    with pytest.raises(ValueError, match="not that of the quantized program"):
        layers.float_nodes(both[0], programs.unquantized("basic").program)


def test_a_perfect_file_differs_nowhere(both: tuple[Program, Program, str]) -> None:
    program, twin, _ = both
    records = layers.compare_layers(program, twin, as_file(program), programs.examples())
    assert [r.layer for r in records] == list(layers.layers_of(program))
    for record in records:
        assert record.steps[1:].sum() == record.own[1:].sum() == 0
        assert record.file_sqnr_db == record.program_sqnr_db > 0
        assert not record.at_fault
    assert layers.first_difference(records) is None


def test_only_the_layer_that_is_wrong_is_at_fault(both: tuple[Program, Program, str]) -> None:
    """Everything after it differs too, but makes of its numbers what the program would."""
    program, twin, _ = both
    perfect = layers.layers_of(program)
    wrong = next(layer for layer in perfect if layer.operation == "conv2d_3")

    def trace(images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
        # The program run on, from the wrong numbers: what a file with one bad layer does.
        given = torch.from_numpy(images)
        spoiled = layers.integers(program, given)[wrong.name].float().mul(0.5).to(torch.int8)
        return run_on(program, given, {wrong.name: spoiled})

    records = layers.compare_layers(program, twin, trace, programs.examples())
    at_fault = [r.layer for r in records if r.at_fault]
    assert at_fault == [wrong]
    later = records[[r.layer for r in records].index(wrong) + 1 :]
    assert any(r.steps[1:].sum() > 0 for r in later)
    first = layers.first_difference(records)
    assert first is not None
    assert first.layer == wrong
    grids = {layer.name: (layer.scale, layer.zero_point) for layer in perfect}
    rows = worst_first(records, grids)
    assert (rows[0].layer, rows[0].at_fault) == (wrong.name, True)
    assert not any(row.at_fault for row in rows[1:])
    assert sorted(r.layer for r in rows) == sorted(layer.name for layer in perfect)
    lost = [row.lost_db for row in rows[1:]]
    assert lost == sorted(lost, reverse=True)


def run_on(
    program: Program, images: Tensor, numbers: dict[str, Tensor]
) -> dict[str, NDArray[np.int8]]:
    """Every layer's integers where some layers give `numbers` instead of their own."""
    wanted = {layer.name for layer in layers.layers_of(program)}

    kept: dict[str, NDArray[np.int8]] = {}

    class Spoiled(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            value = numbers.get(node.name, super().run_node(node))
            if node.name in wanted:
                assert isinstance(value, Tensor)
                kept[node.name] = value.numpy().copy()
            return value

    graph = program.module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    with torch.no_grad():
        Spoiled(graph).run(images)
    return kept


def test_a_wrong_grid_is_at_fault_even_where_the_numbers_agree(
    both: tuple[Program, Program, str],
) -> None:
    program, twin, _ = both
    records = layers.compare_layers(program, twin, as_file(program), programs.examples()[:4])
    grids = {r.layer.name: (r.layer.scale, r.layer.zero_point) for r in records}
    wrong = records[9].layer
    grids[wrong.name] = (wrong.scale * 2, wrong.zero_point)
    rows = worst_first(records, grids)
    assert [row.layer for row in rows if row.at_fault] == [wrong.name]
    assert rows[0].file_scale == 2 * rows[0].scale


def test_layers_that_no_file_holds_are_left_out(both: tuple[Program, Program, str]) -> None:
    program, _, _ = both
    last = layers.layers_of(program)[-1]

    def trace(images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
        return {n: v for n, v in as_file(program)(images).items() if n != last.name}

    records = layers.compare_layers(program, None, trace, programs.examples())
    assert len(records) == len(layers.layers_of(program)) - 1
    assert not any(record.at_fault for record in records)


def test_another_shape_is_refused(both: tuple[Program, Program, str]) -> None:
    program, _, _ = both

    def trace(images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
        return {n: np.moveaxis(v, 1, -1) for n, v in as_file(program)(images).items()}

    with pytest.raises(ValueError, match=r"shape .* but the program's is"):
        layers.compare_layers(program, None, trace, programs.examples())


def test_noise_and_saturation_by_hand() -> None:
    layer = layers.Layer(
        name="q", operation="add", module="", inputs=(), scale=0.5, zero_point=-128
    )
    sums = layers.LayerSums(layer=layer)
    exact = torch.tensor([-1.0, 0.0, 1.0, 3.0, 127.6, 200.0])
    ours = torch.tensor([-128, -128, -126, -122, 127, 127], dtype=torch.int8)
    files = torch.tensor([-128, -128, -126, -121, 127, 127], dtype=torch.int8)
    sums.add(exact, ours, files)
    assert sums.saturated == pytest.approx(2 / 6)  # -1 and 200; 127.6 rounds to 127.5
    noise = 1 + 0.1**2 + 72.5**2
    signal = float(exact.double().square().sum())
    assert sums.program_sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    assert sums.file_sqnr_db == pytest.approx(10 * math.log10(signal / (noise + 0.25)))
    assert layers.decibels(1.0, 0.0) == math.inf
    assert layers.decibels(0.0, 1.0) == -math.inf


@given(
    numbers=st.lists(st.integers(0, 255), min_size=1, max_size=400),
    share=st.sampled_from([0.5, 0.9, 0.99, 1.0]),
)
def test_percentiles_of_counts(numbers: list[int], share: float) -> None:
    counts = torch.bincount(torch.tensor(numbers), minlength=256)
    ordered = sorted(numbers)
    assert layers.percentile(counts, share) == ordered[math.ceil(share * len(ordered) - 1e-9) - 1]


def test_steps_do_not_wrap() -> None:
    far = layers.step_counts(
        torch.tensor([-128, 127], dtype=torch.int8), torch.tensor([127, -128], dtype=torch.int8)
    )
    assert far[255] == 2


def test_probes_show_colours_even_of_grey_images() -> None:
    digits = load_dataset(DigitsData(), square(32))
    for fed in (digits, pixel_values(digits)):
        images = layers.probes(fed)
        assert images.shape == (8, 3, 32, 32)
        grey = [torch.equal(image[0], image[2]) for image in images]
        assert grey == [True] * 6 + [False] * 2
        assert torch.equal(images, layers.probes(fed))
    assert images.min() >= 0
    assert (images - images.round()).abs().max() < 1e-3
    assert 255 - images.max() < 1e-3


class Halved(torch.nn.Module):
    """Two layers of scale 1; the second is half of the first, so odd numbers lie on a tie."""

    def forward(self, x: Tensor) -> Tensor:
        ops, grid = torch.ops.quantized_decomposed, (1.0, 0, -128, 127, torch.int8)
        first = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
        return ops.dequantize_per_tensor(ops.quantize_per_tensor(first * 0.5, *grid), *grid)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ((0, 2, 1, -2), (0, 2, 1, -2)),  # as torch rounds: to the even number
        ((1, 1, 1, -1), (1, 1, 1, -1)),  # the other way
        ((1, 1, 2, -1), (1, 1, 1, -1)),  # 2 / 2 is no tie
        ((3, 0, 1, 4), (1, 1, 1, -1)),
    ],
)
def test_on_a_tie_either_step_is_the_program_s(
    file: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    image = torch.tensor([[1.0, 3.0, 2.0, -3.0]])
    halved = torch.export.export(Halved(), (image,))
    first, second = (layer.name for layer in layers.layers_of(halved))
    numbers = {first: image.to(torch.int8), second: torch.tensor([file], dtype=torch.int8)}
    assert layers.led_integers(halved, image, numbers)[second].tolist() == [list(wanted)]
