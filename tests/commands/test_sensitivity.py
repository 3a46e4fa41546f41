"""What each layer alone costs in int8: the one that was made bad comes first."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from pipeline.commands.debug import sensitivity
from pipeline.commands.debug.sensitivity import EVERY, layer_costs
from pipeline.compress.quantization.fold import float_twin, quantized_program
from pipeline.measure.layers import layers_of
from pipeline.tasks import classification
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset
from tests.making.graphs import EXAMPLE, QUANTIZE, calibrated, in_graph
from tests.making.networks import dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs() -> tuple[torch.export.ExportedProgram, torch.export.ExportedProgram]:
    """A quantized program and its float twin."""
    graph = calibrated()
    twin = float_twin(graph, EXAMPLE)
    return quantized_program(graph, EXAMPLE), twin


def images() -> Dataset:
    whole = dataset(24)
    return replace(whole, tests={"test": whole.train.take(torch.arange(6))})


def test_a_layer_that_was_made_bad_comes_first(
    programs: tuple[torch.export.ExportedProgram, torch.export.ExportedProgram],
) -> None:
    folded, twin = copy.deepcopy(programs[0]), programs[1]
    before = layer_costs(folded, twin, images(), classification)
    bad = before[-3].layer
    node = next(n for n in folded.graph.nodes if n.name == bad)
    for one in (node, *node.users):
        one.args = (one.args[0], 64 * one.args[1], *one.args[2:])
    after = layer_costs(folded, twin, images(), classification)
    assert before[1].layer != bad
    assert after[1].layer == bad
    assert after[1].sqnr_db < before[-3].sqnr_db - 10
    others = {row.layer: row for row in before[1:] if row.layer != bad}
    assert all(others[row.layer] == row for row in after[1:] if row.layer != bad)


def test_every_layer_with_a_grid_of_its_own_is_there_in_order_of_its_cost(
    programs: tuple[torch.export.ExportedProgram, torch.export.ExportedProgram],
) -> None:
    (whole, *rows) = layer_costs(*programs, images(), classification)
    assert (whole.layer, whole.operation) == ("", EVERY)
    assert whole.sqnr_db < rows[0].sqnr_db + 3
    assert [row.sqnr_db for row in rows] == sorted(row.sqnr_db for row in rows)
    assert {row.layer for row in rows} <= {layer.name for layer in layers_of(programs[0])}
    assert len({row.layer for row in rows}) == len(rows) > 20


def test_a_layer_alone_is_what_a_program_with_no_other_rounding_gives(
    programs: tuple[torch.export.ExportedProgram, torch.export.ExportedProgram],
) -> None:
    """By another way: the program itself, with its other roundings taken out."""
    folded, twin = programs
    x, _ = next(batches(images().tests["test"], 2, images()))
    layer = next(one for one in layers_of(folded) if one.operation == "image")
    graph = copy.deepcopy(twin).module(check_guards=False)
    node = in_graph(folded.graph_module, QUANTIZE)[0]
    assert node.name == layer.name
    with torch.no_grad():
        wanted = graph(sensitivity.running.rounded(x, *node.args[1:]))
        found = sensitivity.OneInInt8(folded, twin).answers(x, [layer])
    assert torch.allclose(found[layer.name], wanted, atol=1e-5)
    assert not torch.equal(found[layer.name], found["float"])
