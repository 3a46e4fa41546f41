"""A small stem in every form of the network: branches, deploy form, pruned, quantized, files."""

import copy
import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.prune import take_shapes
from pipeline.compress.pruning.removal import masked_difference, remove
from pipeline.formats import as_onnx
from pipeline.formats.file_facts import scales_exact
from pipeline.formats.formats import FORMATS
from pipeline.measure.file_layers import file_layers, sized_layers
from pipeline.measure.layers import layers_of
from pipeline.networks.count import count
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.input_shape import square
from tests.making import programs
from tests.making.graphs import compute_nodes, islands
from tests.making.networks import (
    ONE_BLOCK,
    SIDE,
    images,
    randomise,
    relative_difference,
    same_state,
    small,
    structure,
)
from tests.making.programs import SMALL_STEM
from tests.making.pruning import TOLERANCE, config, pruned_by, random_mask

aten = torch.ops.aten
LIMIT = 1e-5


def network(**shape: Any) -> ResNeSt:
    return small(**{"stem": "small", "layers": ONE_BLOCK} | shape)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    block=st.sampled_from(["bottleneck", "basic"]),
    layers=st.sampled_from([(1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 1)]),
    radix=st.sampled_from([1, 2, 4]),
    cardinality=st.sampled_from([1, 2]),
    stem_width=st.integers(1, 40),
    avd=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_all_forms_are_equal(seed: int, **shape: Any) -> None:
    model = network(**shape)
    randomise(model, seed)
    x, branched = images(1, seed), branch_form(model)
    with torch.no_grad():
        wanted = model(x)
        assert relative_difference(branched(x), wanted) <= LIMIT
        assert relative_difference(deploy_form(branched)(x), wanted) <= LIMIT


def test_forms_are_equal_in_training_too() -> None:
    model = network().train()
    branched = branch_form(model)
    deploy, x = deploy_form(branched), images(4)
    wanted = model(x)
    assert relative_difference(branched(x), wanted) <= 1e-4
    assert relative_difference(deploy(x), wanted) <= 1e-4


def test_layers_of_the_deploy_form_have_their_names_in_branch_form() -> None:
    branched = branch_form(network())
    deploy = deploy_form(branched)
    assert [n for n, _ in deploy.named_children() if n != "normalize"] == (
        ["conv1", "bn1", "maxpool", "layer2", "fc"]
    )
    assert same_state(branched.get_submodule("conv1"), deploy.get_submodule("conv1"))


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_random_masks(block: str, seed: int) -> None:
    """The basic block's shortcut is its input as it is: its channels are those of the stem."""
    original = branch_form(network(block=block, layers=(1, 0, 0, 0)))
    groups = groups_of(original, square(SIDE), structure(original))
    stem = groups[0]
    assert (stem.name, stem.stage, stem.channels) == ("conv1", "stem", 16)
    shortcut = "layer1.0.branches.0.4" in stem.makers
    assert shortcut == (block == "basic")
    removed = random_mask(groups, random.Random(seed))
    pruned = remove(original, groups, removed)
    assert masked_difference(original, pruned, groups, removed, square(SIDE)) <= TOLERANCE
    gone = {name: indices for name, indices in removed.items() if name != "conv1"}
    assert masked_difference(original, pruned, groups, gone, square(SIDE)) > TOLERANCE


def test_every_convolution_makes_and_reads_the_channels_of_one_group() -> None:
    model = branch_form(network())
    groups = groups_of(model, square(SIDE), structure(model))
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sorted(name for group in groups for name in group.makers) == sorted(convs)
    readers = sorted(name for group in groups for name in group.readers)
    assert readers == sorted({*convs, "fc"} - {"conv1"})
    assert sorted(name for group in groups for name in group.norms) == sorted(norms)


def test_pruning_reaches_the_share_and_can_be_saved() -> None:
    original, x = branch_form(network(width_multiplier=0.5)), images(2)
    result, _ = pruned_by(original, config(macs=0.5))
    assert (
        0.48 <= count(result.model, square(SIDE)).macs / count(original, square(SIDE)).macs <= 0.5
    )
    assert result.difference <= LIMIT
    again = branch_form(network(width_multiplier=0.5, seed=1))
    take_shapes(again, result.model.state_dict())
    assert same_state(again, result.model)
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
        assert relative_difference(deploy_form(again)(x), again(x)) <= LIMIT


@pytest.mark.slow
def test_the_program_is_int8_throughout() -> None:
    graph = programs.quantized(SMALL_STEM).program.graph
    assert islands(graph) == []
    assert aten.max_pool2d.default not in {node.target for node in compute_nodes(graph)}


def test_layers_of_the_file_know_their_groups() -> None:
    source = programs.quantized(SMALL_STEM)
    model = branch_form(source.network)
    groups = groups_of(model, square(SIDE), structure(model))
    layers = file_layers(source.program, groups)
    assert (layers[0].place, layers[0].inputs.groups, layers[0].outputs.groups) == (
        *("conv1", (), ("conv1",)),
    )
    channels = {group.name: group.channels for group in groups}
    assert {g for layer in layers if layer.sized for g in layer.outputs.groups} == set(channels)
    nodes = {node.name: node for node in source.program.graph.nodes}
    widths = {name: nodes[name].meta["val"].shape[1] for name in sized_layers(layers, channels)}
    assert sized_layers(layers, channels) == widths
    assert [layer.name for layer in layers] == [
        layer.name for layer in layers_of(source.program) if layer.inputs
    ]


to_onnx = functools.cache(as_onnx.to_onnx)


@pytest.mark.parametrize("form", ["onnx", "tflite"])
@pytest.mark.slow
def test_files_answer_as_their_program(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What both begin with, most of the time that it takes, is done once.
    monkeypatch.setattr(as_onnx, "to_onnx", lambda given: copy.deepcopy(to_onnx(given)))
    module = FORMATS[form].module()
    source, path = programs.quantized(SMALL_STEM), tmp_path / f"model{FORMATS[form].suffix}"
    module.write(source.program, path)
    found = programs.run(module.open_file(path))
    apart = programs.steps_apart(found, source)
    assert apart.median() == 0
    assert apart.max() <= 5
    facts = module.inspect(path)
    assert facts.int8_coverage == 1.0
    exact = scales_exact(source.program, facts)
    assert exact is not None
    assert exact.same == exact.total > 300
    assert not [operation for operation in facts.ops if "max" in operation.lower()]
