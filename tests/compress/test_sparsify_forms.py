"""Zeros stay in every form of a network; what cannot be sparse is refused."""

import copy
import functools
import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from pipeline.base.errors import InputError
from pipeline.compress.pruning import sparsify
from pipeline.compress.pruning.sparsify import Sparsifier, keep_zeros, sparsity, zero_masks
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program, source_weight
from pipeline.compress.training.hooks import Hooks
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.recipe.compression import Milestones
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import TrainConfig
from tests.making.graphs import EXAMPLE, in_graph
from tests.making.networks import ONE_BLOCK, SHALLOW, SIDE, dataset
from tests.making.sparse import (
    DENSE,
    STEPS,
    config,
    eligible,
    network,
    sparse,
)
from tests.making.training import fit

pytestmark = pytest.mark.slow


def int8_weights(program: torch.export.ExportedProgram) -> list[Tensor]:
    """The weights of all convolutions in their order."""
    stored = {**program.state_dict, **program.constants}
    targets = {s.arg.name: s.target for s in program.graph_signature.input_specs if s.target}
    return [
        stored[targets[conv.args[1].args[0].name]]
        for conv in program.graph.nodes
        if conv.target is torch.ops.aten.conv2d.default
    ]


@functools.cache
def graph_of_sparse() -> fx.GraphModule:
    return qat.prepare(deploy_form(sparse(pattern="2:4")), square(SIDE))


def test_all_forms_have_the_same_weights() -> None:
    branched = sparse(pattern="2:4")
    forms = [branched, deploy_form(branched), graph_of_sparse()]
    shapes = [sorted(tuple(w.shape) for w in eligible(form).values()) for form in forms]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [sparsity(form, DENSE) for form in forms] == [0.5] * 3


def after_qat(keep: bool) -> tuple[dict[str, Tensor], list[tuple[str, Tensor]]]:
    """Masks of a graph before QAT, and its int8 weights after it by the parameter's name."""
    graph = copy.deepcopy(graph_of_sparse())
    masks = zero_masks(graph, DENSE)
    schedule = qat.Schedule(graph, Milestones(freeze_observers=0.8, freeze_bn=0.9))
    hooks = Hooks(
        before_step=schedule.before_step,
        set_training=schedule.set_training,
        after_step=keep_zeros(graph, masks) if keep else lambda: None,
    )
    short = TrainConfig(epochs=2, batch_size=8, learning_rate=0.02)
    fit(graph, dataset(), short, 0, hooks)
    convolutions = in_graph(graph, torch.ops.aten.conv2d.default)
    names = [str(source_weight(conv.args[1]).target) for conv in convolutions]  # type: ignore[arg-type]
    weights = int8_weights(quantized_program(graph, EXAMPLE))
    return masks, list(zip(names, weights, strict=True))


def test_zeros_stay_through_qat_and_folding_into_int8() -> None:
    masks, weights = after_qat(keep=True)
    before, found = eligible(sparse(pattern="2:4")), dict(weights)
    assert len(masks) == len(before) > 10
    for name, kept in masks.items():
        assert found[name].dtype == torch.int8
        assert (~kept).double().mean() == 0.5, name
        assert (found[name][~kept] == 0).all(), name
        # Small weights may round to zero beside them; most do not.
        assert (found[name][kept] != 0).double().mean() > 0.9, name


def test_training_would_fill_the_zeros() -> None:
    masks, weights = after_qat(keep=False)
    found = dict(weights)
    assert any((found[name][~kept] != 0).any() for name, kept in masks.items())


@pytest.mark.parametrize(
    ("fields", "steps", "message"),
    [
        ({}, 0, "makes 0 steps; snip_momentum needs at least 2: raise sparsify.train.epochs"),
        ({"criterion": "snip", "end": 1.0}, 1, "1 steps; snip needs at least 2"),
        ({"criterion": "magnitude"}, 0, "0 steps; magnitude needs at least 1"),
        (
            {"start": 0.2, "end": 0.3},
            9,
            "1 of them between sparsify.start 0.2 and sparsify.end 0.3; .* at least 2: raise "
            "sparsify.train.epochs, or set sparsify.start to sparsify.end",
        ),
    ],
)
def test_too_few_steps_are_refused(fields: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sparsifier(network(), config(**fields), steps, DENSE)


@pytest.mark.parametrize(
    ("pattern", "overrides", "message"),
    [
        (
            "16x1",
            {},
            "got 16x1, .* multiples of 16 x 1, .* not so are conv1.3 (8 x 8); choose another "
            "pattern, such as 1x1, or set prune.round_to to a multiple of 16",
        ),
        ("3:7", {}, "got 3:7, .* 1 x 7, .* conv1.3 (8 x 8), conv1.6 (16 x 8), .* and 10 more;"),
        # Two groups of 16 output channels: blocks of 32 would be of both.
        ("32x1", {"cardinality": 2}, "layer2.0.fc1 (16 x 32);"),
    ],
)
def test_layers_that_do_not_fit_are_named(
    pattern: str, overrides: dict[str, Any], message: str
) -> None:
    share = 3 / 7 if ":" in pattern else 0.5
    model = network(ONE_BLOCK if "cardinality" in overrides else SHALLOW, **overrides)
    text = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(InputError, match=text):
        Sparsifier(model, config(pattern=pattern, sparsity=share), STEPS, DENSE)


def test_another_number_of_steps_is_an_error() -> None:
    sparsifier = Sparsifier(network(), config(), STEPS, DENSE)
    with pytest.raises(ValueError, match="got 7 training steps; the schedule was made for 12"):
        sparsifier.before_step(0, 7)


def test_a_training_that_ends_early_is_an_error() -> None:
    sparsifier = Sparsifier(network(), config(criterion="magnitude"), STEPS, DENSE)
    sparsifier.before_step(0, STEPS)
    with pytest.raises(RuntimeError, match="after step 1 of 12, before the last cut at step 7"):
        sparsifier.finish()


QUIET = f"""
import sys
import torch
from pipeline.compress.pruning import sparsify
assert "neural_compressor" not in sys.modules
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.network import named
from pipeline.recipe.compression import SparsifyConfig
from pipeline.recipe.training import TrainConfig
model = branch_form(named("resnest14", num_classes=2, width_multiplier=0.125))
state = torch.random.get_rng_state()
train = TrainConfig(epochs=1, batch_size=2, learning_rate=0.1)
settings = SparsifyConfig(criterion="magnitude", train=train)
sparsifier = sparsify.Sparsifier(model, settings, {STEPS}, [])
for step in range({STEPS}):
    sparsifier.before_step(step, {STEPS})
    sparsifier.after_step()
sparsifier.finish()
assert abs(sparsify.sparsity(model, []) - 0.5) < 0.01
assert torch.equal(torch.random.get_rng_state(), state)
assert not {{"tensorflow", "keras", "tf_keras", "coremltools"}} & sys.modules.keys()
"""


def test_the_library_comes_late_and_says_nothing() -> None:
    result = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_pattern_needs_multiples_of_both_sides() -> None:
    assert [sparsify._pattern_shape(p) for p in ("1x1", "4x2", "2:4")] == [(1, 1), (4, 2), (1, 4)]
    assert math.lcm(*sparsify._pattern_shape("4x6")) == 12
