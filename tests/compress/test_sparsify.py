"""Zeros come in the pattern and the share asked for, and stay through QAT into int8."""

import copy
import functools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pipeline.base.errors import InputError
from pipeline.compress.pruning import sparsify
from pipeline.compress.pruning.sparsify import Sparsifier, keep_zeros, sparsity, zero_masks
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fold import quantized_program, source_weight
from pipeline.compress.training.hooks import Hooks
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.compression import Milestones, SparsifyConfig
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import TrainConfig
from tests.making.graphs import EXAMPLE, in_graph
from tests.making.networks import ONE_BLOCK, SHALLOW, SIDE, VARIANTS, dataset, small, structure
from tests.making.training import fit

pytestmark = pytest.mark.slow

STEPS = 12
TRAIN = TrainConfig(epochs=STEPS // 2, batch_size=8, learning_rate=0.02)
ONE_CUT: dict[str, Any] = {"start": 0.0, "end": 0.0}
DEEP = (1, 1, 1, 1)
"""Its last stage sees one pixel, where most weights of a 3 x 3 kernel have no gradient."""

Recorder = Callable[[int, ResNeSt], None]


def config(**fields: Any) -> SparsifyConfig:
    return SparsifyConfig(**{"train": TRAIN} | fields)


def network(layers: tuple[int, ...] = SHALLOW, **overrides: Any) -> ResNeSt:
    return branch_form(small(**{"layers": layers} | overrides)).train()


DENSE = structure(network((1, 2, 1, 1))).dense
"""Of every network here, but those with a small stem."""


def train(
    model: ResNeSt, settings: SparsifyConfig, seed: int = 0, watch: Recorder | None = None
) -> Sparsifier:
    sparsifier = Sparsifier(model, settings, STEPS, DENSE)

    def after_step() -> None:
        sparsifier.after_step()
        if watch is not None:
            watch(sparsifier._step, model)

    hooks = Hooks(
        before_step=sparsifier.before_step,
        after_backward=sparsifier.after_backward,
        after_step=after_step,
    )
    fit(model, dataset(), settings.train, seed, hooks)
    sparsifier.finish()
    return sparsifier


@functools.cache
def _sparse(layers: tuple[int, ...], fields: tuple[tuple[str, Any], ...]) -> ResNeSt:
    model = network(layers)
    train(model, config(**dict(fields)))
    return model


def sparse(layers: tuple[int, ...] = SHALLOW, **fields: Any) -> ResNeSt:
    """A network trained to zeros; shared, not to be changed."""
    return _sparse(layers, tuple(sorted(fields.items())))


def eligible(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if sparsify._eligible(n, p, DENSE)}


def zeros_per_block(model: nn.Module, rows: int, columns: int) -> Tensor:
    """Zeros in every block of output channels x inputs, of all layers that may have some."""
    blocks = [
        (weight == 0).unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).sum((1, 3)).flatten()
        for weight in eligible(model).values()
    ]
    return torch.cat(blocks)


CRITERIA = ["magnitude", "snip", "snip_momentum"]
SHARES = [("1x1", 0.5), ("1x1", 0.97), ("4x1", 0.5), ("1x4", 0.3)]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("pattern", "share"), SHARES)
def test_the_share_is_reached_in_whole_blocks(pattern: str, share: float, criterion: str) -> None:
    model = sparse(pattern=pattern, sparsity=share, criterion=criterion)
    assert sparsity(model, DENSE) == pytest.approx(share, abs=1e-3)
    rows, columns = map(int, pattern.split("x"))
    assert set(zeros_per_block(model, rows, columns).tolist()) == {0, rows * columns}
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and name not in eligible(model):
            assert (weight != 0).all(), name


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_so_many_of_so_many_inputs_are_zero_everywhere(pattern: str, criterion: str) -> None:
    zeros, inputs = map(int, pattern.split(":"))
    layers = DEEP if pattern == "2:4" else SHALLOW
    model = sparse(layers, pattern=pattern, sparsity=zeros / inputs, criterion=criterion)
    assert set(zeros_per_block(model, 1, inputs).tolist()) == {zeros}
    assert sparsity(model, DENSE) == zeros / inputs


def test_equal_scores_do_not_fall_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_cut() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1))
        for weight in eligible(model).values():
            weight.fill_(0.25)
        sparsifier = Sparsifier(
            model, config(pattern="2:4", criterion="magnitude", **ONE_CUT), 1, DENSE
        )
        sparsifier.before_step(0, 1)
        sparsifier.finish()
        return model

    assert set(zeros_per_block(one_cut(), 1, 4).tolist()) == {2}
    monkeypatch.setattr(sparsify, "_POSITION_STEP", 0.0)
    assert set(zeros_per_block(one_cut(), 1, 4).tolist()) == {4}


def test_weights_without_gradients_do_not_fall_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "_GRADIENT_FLOOR", 0.0)
    model = network(DEEP)
    train(model, config(pattern="2:4", criterion="snip"))
    assert zeros_per_block(model, 1, 4).max() > 2  # as they would, and do not above


def test_a_rounded_share_is_that_of_the_pattern() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1))
    settings = config(pattern="1:3", sparsity=0.333333, criterion="magnitude", **ONE_CUT)
    sparsifier = Sparsifier(model, settings, 1, DENSE)
    sparsifier.before_step(0, 1)
    sparsifier.finish()
    assert set(zeros_per_block(model, 1, 3).tolist()) == {1}


def test_a_scope_is_a_layer_or_the_network() -> None:
    def shares(scope: str) -> list[float]:
        weights = eligible(sparse(scope=scope)).values()
        return [(w == 0).double().mean().item() for w in weights]

    assert all(share == pytest.approx(0.5, abs=0.01) for share in shares("layer"))
    assert max(shares("network")) - min(shares("network")) > 0.1


def test_the_smallest_weights_go() -> None:
    before = network()
    weights = eligible(before)
    limit = torch.cat([w.abs().flatten() for w in weights.values()]).median()
    model = copy.deepcopy(before)
    train(model, config(criterion="magnitude", **ONE_CUT))
    for name, weight in eligible(model).items():
        assert torch.equal(weight == 0, weights[name].abs() <= limit), name


@pytest.mark.parametrize("criterion", CRITERIA)
def test_weights_go_gradually_between_start_and_end(criterion: str) -> None:
    shares: list[float] = []

    def watch(step: int, model: ResNeSt) -> None:
        shares.append(sparsity(model, DENSE))

    settings = config(criterion=criterion, start=0.25, end=0.75)
    train(network(), settings, watch=watch)
    assert len(shares) == STEPS
    begin, last = 3, 9
    assert all(share == 0 for share in shares[: begin + 1])
    for step in range(begin + 1, last + 1):
        cut, cuts = step - begin, last - begin
        assert shares[step] == pytest.approx(0.5 * (1 - (1 - cut / cuts) ** 3), abs=1e-3)
    assert shares[last] == shares[-1] == pytest.approx(0.5, abs=1e-3)


def test_cuts_are_few_and_the_last_is_on_time() -> None:
    steps = 10_000
    begin, last, every = sparsify._cut_steps(config(start=0.1, end=0.9), steps)
    cuts = list(range(begin + every, last + 1, every))
    assert (cuts[-1], len(cuts)) == (9000, 32)
    assert 1000 <= begin < 1000 + every
    # With gradients there is no cut before the first step, and never one after the last.
    assert sparsify._cut_steps(config(start=0.0, end=0.0), 2)[:2] == (1, 1)
    assert sparsify._cut_steps(config(start=1.0, end=1.0), 7)[:2] == (6, 6)


def test_the_same_seed_gives_the_same_masks() -> None:
    def masks(seed: int) -> dict[str, Tensor]:
        model = network()
        train(model, config(), seed)
        return zero_masks(model, DENSE)

    one, two, other = masks(0), masks(0), masks(1)
    assert one.keys() == two.keys() == other.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("pattern", ["1x1", "2:4"])
def test_counting_once_changes_no_mask(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "_count_once", lambda pattern: None)
    model = network()
    train(model, config(pattern=pattern))
    wanted = zero_masks(sparse(pattern=pattern), DENSE)
    assert all(torch.equal(mask, wanted[name]) for name, mask in zero_masks(model, DENSE).items())


def test_the_network_stays_a_plain_module() -> None:
    model, untouched = network(), network()
    torch_save = torch.save
    sparsifier = train(model, config())
    assert torch.save is torch_save
    for name, module in model.named_modules():
        assert vars(module).keys() == vars(untouched.get_submodule(name)).keys(), name
        assert not module._forward_hooks, name
        assert not module._forward_pre_hooks, name
    assert model.state_dict().keys() == untouched.state_dict().keys()
    signs = torch.cat([w[w == 0].signbit() for w in eligible(model).values()])
    assert not signs.any()
    del sparsifier
    copy.deepcopy(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_left_out(variant: str) -> None:
    model = network(**VARIANTS[variant])
    left_out = Sparsifier(model, config(criterion="magnitude"), STEPS, DENSE).left_out
    assert {name for name in left_out if "fc2" not in name} == {"conv1.0", "fc"}
    second = {n for n, m in model.named_modules() if "fc2" in n and isinstance(m, nn.Conv2d)}
    assert second <= set(left_out)
    chosen = {n.removesuffix(".weight") for n in eligible(model)}
    layers = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert chosen == layers - set(left_out)


def test_a_small_stem_stays_dense() -> None:
    model = network(ONE_BLOCK, stem="small")
    dense = structure(model).dense
    left_out = Sparsifier(model, config(criterion="magnitude"), STEPS, dense).left_out
    assert {name for name in left_out if "fc2" not in name} == {"conv1", "fc"}
    with torch.no_grad():
        model.get_parameter("conv1.weight")[0] = 0.0
    deploy = deploy_form(model)
    assert not deploy.get_parameter("conv1.weight")[0].any()
    assert [zero_masks(form, dense) for form in (model, deploy)] == [{}, {}]


def test_a_dense_network_has_no_masks() -> None:
    model = network()
    assert zero_masks(model, DENSE) == {}
    assert sparsity(model, DENSE) == 0.0
    with torch.no_grad():
        model.fc.weight[0] = 0.0
        model.conv1[0].weight[0] = 0.0
    assert zero_masks(model, DENSE) == {}
    assert sparsity(nn.Linear(2, 2), DENSE) == 0.0


def test_a_mask_of_another_network_is_an_error() -> None:
    model = sparse()
    with pytest.raises(KeyError, match="conv1"):
        keep_zeros(nn.Linear(2, 2), zero_masks(model, DENSE))


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
