"""The phases of quantization-aware training, saved states, and training that repeats."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import fx, nn
from torchao.quantization.pt2e import FakeQuantizeBase
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from pipeline.base.errors import InputError
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fake_quantize import FixedFakeQuantize
from pipeline.compress.training.hooks import Hooks
from pipeline.networks.checkpoints import save_checkpoint
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.recipe.compression import Milestones
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import TrainConfig
from tests.making.graphs import calibrated, in_graph, prepared
from tests.making.networks import (
    CLASSES,
    ONE_BLOCK,
    SIDE,
    VARIANTS,
    dataset,
    deploy,
    images,
    relative_difference,
    same_state,
    small,
)
from tests.making.training import fit

pytestmark = pytest.mark.slow

BATCH_NORM = torch.ops.aten.batch_norm.default
RELU = torch.ops.aten.relu.default
PHASES = {
    "": (False, False, True),
    "observe": (True, False, True),
    "fake_quantize": (True, True, True),
    "freeze_observers": (False, True, True),
    "freeze_bn": (False, True, False),
}
"""Whether observers run, values are rounded, and batch norms use the batch."""


def flags(graph: fx.GraphModule) -> tuple[bool, bool, bool]:
    """As in PHASES; fails where the graph is of two minds."""
    modules = [m for m in graph.modules() if isinstance(m, FakeQuantizeBase)]
    found = {
        (bool(m.observer_enabled[0]), bool(m.fake_quant_enabled[0]), norm.args[5])
        for m in modules
        for norm in in_graph(graph, BATCH_NORM)
    }
    assert len(found) == 1
    return found.pop()


def test_a_prepared_graph_is_the_network_in_training_mode() -> None:
    graph, network = prepared(), deploy().train()
    for module in graph.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_fake_quant(False)
    x = images(5)
    assert relative_difference(graph(x), network(x)) <= 1e-4
    qat.set_training(graph, False)
    with torch.no_grad():
        # The running statistics of both have seen one batch.
        assert relative_difference(graph(x), network.eval()(x)) <= 1e-4


def pt2e_form(variant: str) -> fx.GraphModule:
    """The graph as torchao makes it, weights scaled before their rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat, "_with_fake_quantization", prepare_qat_pt2e)
        patch.setattr(qat, "_round_as_folded", lambda graph: None)
        return qat.prepare(deploy(variant), square(SIDE))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_plain_weights_are_rounded_as_torchaos_form_rounds_them(variant: str) -> None:
    ours, torchaos, x = qat.prepare(deploy(variant), square(SIDE)), pt2e_form(variant), images(6)
    for graph in (ours, torchaos):
        qat.calibrate(graph, lambda: [x])
        qat.set_training(graph, True)
        qat.Schedule(graph, Milestones(observe=0, fake_quantize=0, freeze_observers=0)).before_step(
            0, 4
        )
    one, other = ours(x), torchaos(x)
    # A number at the middle of a step may go either way; in few places, one step of the grid.
    assert (one - other).abs().mean() <= 0.02 * other.abs().mean()
    state, wanted = ours.state_dict(), torchaos.state_dict()
    rounding = "activation_post_process"  # numbered in the order in which it was put in
    assert {n for n in state if rounding not in n} == {n for n in wanted if rounding not in n}
    counted = [name for name in state if name.endswith("num_batches_tracked")]
    assert counted
    assert all(state[name] == wanted[name] for name in counted)
    assert torch.allclose(scales(ours), scales(torchaos), rtol=2e-3)


def scales(graph: fx.GraphModule) -> torch.Tensor:
    """The scales of every tensor that is rounded, from the smallest to the largest."""
    rounds = [module for module in graph.modules() if isinstance(module, FakeQuantizeBase)]
    return torch.cat([module.scale.flatten() for module in rounds]).sort().values


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("step", [0, 60, 90])  # nothing rounded, grids frozen, all frozen
def test_merged_rounding_gives_the_same_numbers(variant: str, step: int) -> None:
    graph = calibrated(variant)
    merged = copy.deepcopy(graph)
    qat.merge_rounding(merged)
    assert len(in_graph(merged, RELU)) < len(in_graph(graph, RELU))
    x = images(6, seed=3)
    for each in (graph, merged):
        qat.Schedule(each, Milestones()).before_step(step, 100)
    assert torch.equal(merged(x), graph(x))
    # What the stem's pool picks was observed as well, and its grid averaged twice a step.
    assert same_state(merged, graph) or step == 0


def test_merged_rounding_gives_nearly_the_same_gradients() -> None:
    graph = calibrated()
    merged = copy.deepcopy(graph)
    qat.merge_rounding(merged)
    found = []
    for each in (graph, merged):
        qat.Schedule(each, Milestones()).before_step(60, 100)
        each(images(6)).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999


@pytest.mark.parametrize(
    ("milestones", "entered"),
    [
        (
            Milestones(),
            {0: "observe", 10: "fake_quantize", 50: "freeze_observers", 75: "freeze_bn"},
        ),
        (
            Milestones(observe=0.2, fake_quantize=0.3, freeze_observers=0.3, freeze_bn=1.0),
            {0: "", 20: "observe", 30: "freeze_observers"},
        ),
        (
            Milestones(observe=0, fake_quantize=0, freeze_observers=0, freeze_bn=0),
            {0: "freeze_bn"},
        ),
    ],
)
def test_the_schedule_enters_each_phase_at_its_step(
    milestones: Milestones, entered: dict[int, str]
) -> None:
    graph = calibrated()
    schedule = qat.Schedule(graph, milestones)
    wanted = ""
    for step in range(100):
        schedule.before_step(step, 100)
        wanted = entered.get(step, wanted)
        assert schedule.phase == wanted, step
        if step in entered or step in {5, 60, 99}:
            assert flags(graph) == PHASES[wanted], step


def test_training_that_starts_late_is_in_the_right_phase() -> None:
    graph = calibrated()
    schedule = qat.Schedule(graph, Milestones())
    schedule.before_step(60, 100)
    assert schedule.phase == "freeze_observers"
    assert flags(graph) == PHASES["freeze_observers"]


def test_set_training_switches_batch_norms() -> None:
    graph, x = calibrated(), images(4)
    with torch.no_grad():
        evaluated = graph(x)
        assert torch.equal(graph(x), evaluated)
        qat.set_training(graph, True)
        assert not torch.equal(graph(x), evaluated)
    assert all(norm.args[5] is True for norm in in_graph(graph, BATCH_NORM))
    qat.set_training(graph, True, batch_norms=False)
    assert all(norm.args[5] is False for norm in in_graph(graph, BATCH_NORM))
    qat.set_training(graph, False, batch_norms=True)
    assert all(norm.args[5] is False for norm in in_graph(graph, BATCH_NORM))


def test_the_schedule_keeps_frozen_batch_norms_frozen() -> None:
    graph = calibrated()
    schedule = qat.Schedule(graph, Milestones())
    schedule.set_training(graph, True)
    assert all(norm.args[5] for norm in in_graph(graph, BATCH_NORM))
    schedule.before_step(80, 100)
    schedule.set_training(graph, True)
    assert not any(norm.args[5] for norm in in_graph(graph, BATCH_NORM))


def trained(seed: int) -> fx.GraphModule:
    graph = calibrated()
    schedule = qat.Schedule(graph, Milestones())
    config = TrainConfig(epochs=2, batch_size=8, learning_rate=0.02)
    hooks = Hooks(before_step=schedule.before_step, set_training=schedule.set_training)
    fit(graph, dataset(), config, seed, hooks)
    return graph.cpu()


@functools.cache
def trained_once() -> fx.GraphModule:
    return trained(0)


def test_training_repeats_to_the_bit_and_keeps_constants() -> None:
    one, two, other = trained_once(), trained(0), trained(1)
    assert same_state(one, two)
    assert not same_state(one, other)
    qat.refuse_bad_grids(one)
    before = dict(calibrated().named_parameters())
    for name, parameter in one.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name
    fixed = {name.split(".")[-2] for name, p in one.named_parameters() if not p.requires_grad}
    assert {"complement", "avd_last"} <= fixed


def test_grids_stay_once_observers_are_frozen() -> None:
    graph = calibrated()
    schedule = qat.Schedule(graph, Milestones())
    schedule.before_step(60, 100)
    names = [n for n, _ in graph.named_buffers() if n.rpartition(".")[2] in {"low", "high"}]
    before = {name: graph.get_buffer(name).clone() for name in names}
    with torch.no_grad():
        graph(100 * images(4))
    assert len(names) > 20
    assert all(torch.equal(graph.get_buffer(name), before[name]) for name in names)


def test_a_saved_state_gives_the_same_outputs(tmp_path: Path) -> None:
    graph = trained_once()
    save_checkpoint(graph.state_dict(), tmp_path / "weights.safetensors", None)
    fresh = prepared()
    qat.load_state(fresh, load_file(tmp_path / "weights.safetensors"))
    assert same_state(fresh, graph)
    qat.set_training(fresh, False)
    x = images(4, seed=5)
    with torch.no_grad():
        assert torch.equal(fresh(x), graph(x))


def test_a_state_of_another_network_is_refused() -> None:
    state = {k: v for k, v in calibrated().state_dict().items() if k != "fc.weight"}
    with pytest.raises(RuntimeError, match=r"fc\.weight"):
        qat.load_state(prepared(), state)


def test_calibration_rounds_nothing_and_leaves_the_weights() -> None:
    graph = prepared()
    before = copy.deepcopy(dict(graph.named_parameters()))
    seen: list[tuple[bool, bool, bool]] = []

    def batches() -> list[Any]:
        seen.append(flags(graph))
        return [images(3)]

    qat.calibrate(graph, batches)
    assert seen == [(True, False, False)]
    assert all(torch.equal(p, before[name]) for name, p in graph.named_parameters())
    qat.refuse_bad_grids(graph)
    one = next(m for m in graph.modules() if hasattr(m, "low"))
    assert one.low == images(3).min()
    assert one.high == images(3).max()


def test_grids_that_saw_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"quantization: \S+ has no usable range; .*calibration"):
        qat.refuse_bad_grids(prepared())


def test_only_grids_fixed_beforehand_need_no_images() -> None:
    """Whatever their numbers: a learned grid may come to have those of the sigmoid."""
    graph = calibrated()
    assert any(isinstance(module, FixedFakeQuantize) for module in graph.modules())
    qat.refuse_bad_grids(graph)
    name, module = next((n, m) for n, m in graph.named_modules() if hasattr(m, "low"))
    module.low.fill_(float("inf"))
    module.scale.fill_(1 / 256)
    with pytest.raises(InputError, match=re.escape(f"quantization: {name} has no usable range")):
        qat.refuse_bad_grids(graph)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_grid_that_is_not_finite_is_refused_by_name(value: float) -> None:
    graph = calibrated()
    name, module = next((n, m) for n, m in graph.named_modules() if hasattr(m, "low"))
    module.scale.fill_(value)
    with pytest.raises(InputError, match=re.escape(f"quantization: {name} has no usable range")):
        qat.refuse_bad_grids(graph)


def test_dead_channels_do_not_give_nan() -> None:
    network = deploy_form(branch_form(small(layers=ONE_BLOCK, radix=1)))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data[0] = 0.0
        norm.weight.data[1] = -1e-12
    wanted = copy.deepcopy(network).eval()
    graph = qat.prepare(network, square(SIDE))
    x = images(4)
    logits = graph(x)
    assert logits.shape == (4, CLASSES)
    logits.square().sum().backward()
    for name, parameter in graph.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert all(norm.weight.data[0] == 1e-6 for norm in norms)
    assert all(norm.weight.data[1] == -1e-6 for norm in norms)
    with torch.no_grad():
        # The network computes what it did.
        assert relative_difference(_with_statistics(network, wanted)(x), wanted(x)) <= 1e-4


def _with_statistics(network: nn.Module, source: nn.Module) -> nn.Module:
    """The network in evaluation mode with the running statistics of another."""
    for name, buffer in source.named_buffers():
        network.get_buffer(name).copy_(buffer)
    return network.eval()
