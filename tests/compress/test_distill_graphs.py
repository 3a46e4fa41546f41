"""Distillation to graphs of quantization-aware training, and what is refused."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

from pipeline.compress.quantization import qat
from pipeline.compress.training.distill import (
    distillation,
)
from pipeline.compress.training.hooks import Hooks
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.compression import Milestones
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import DistillConfig
from tests.making.distilling import (
    BOTH,
    FEATURES,
    LABEL_LOSS,
    SOFT,
    STRONG,
    distilled,
    loss_of,
    seen,
    training,
)
from tests.making.graphs import calibrated, prepared
from tests.making.networks import (
    CLASSES,
    SHALLOW,
    SIDE,
    VARIANTS,
    dataset,
    images,
    same_state,
    small,
)
from tests.making.training import fit

pytestmark = pytest.mark.slow


@functools.cache
def _graph() -> tuple[ResNeSt, fx.GraphModule]:
    teacher = small(layers=(2, 1, 1, 1))
    graph = qat.prepare(deploy_form(branch_form(teacher)), square(SIDE))
    qat.calibrate(graph, lambda: [images(8), images(8, seed=1)])
    return teacher, graph


def teacher_and_graph() -> tuple[ResNeSt, fx.GraphModule]:
    """A network of four stages and its calibrated graph, the caller's own."""
    return copy.deepcopy(_graph())


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_a_graph_is_watched_at_the_ends_of_its_stages() -> None:
    """Nothing is rounded after calibration: it is the teacher, and must agree with it."""
    teacher, graph = teacher_and_graph()
    other = small(seed=1, layers=(2, 1, 1, 1))
    assert loss_of(graph, teacher, FEATURES, images(3)).item() < 1e-9
    assert loss_of(graph, other, FEATURES, images(3)).item() > 1e-3


@pytest.mark.parametrize("variant", ["plain", "basic_one_split"])
def test_every_kind_of_block_is_watched_at_its_end(variant: str) -> None:
    shape = {"layers": SHALLOW} | VARIANTS[variant]
    teacher, other = (small(seed=seed, **shape) for seed in (0, 1))
    assert loss_of(calibrated(variant), teacher, FEATURES, images(3)).item() < 1e-9
    assert loss_of(calibrated(variant), other, FEATURES, images(3)).item() > 1e-4


def test_a_graph_is_left_as_it_was() -> None:
    teacher, graph = teacher_and_graph()
    before = copy.deepcopy(graph)
    x = images(3)
    with distilled(graph, teacher, BOTH) as adjust_loss:
        assert hooks_of(graph) == 4
        assert graph.code == before.code
        assert graph.state_dict().keys() == before.state_dict().keys()
        with torch.no_grad():
            logits = graph(x)
            adjust_loss(x, logits, LABEL_LOSS)
            assert torch.equal(logits, before(x))
    assert hooks_of(graph) == 0
    assert graph.code == before.code
    assert str(graph.graph) == str(before.graph)
    assert same_state(graph, before)
    assert torch.equal(graph(x), before(x))


def test_a_graph_learns_through_every_phase() -> None:
    """And every change of mode, for which it is recompiled."""
    _, graph = teacher_and_graph()
    teacher, x = small(seed=1, layers=(2, 1, 1, 1)), seen()
    before = loss_of(graph, teacher, SOFT, x)
    schedule = qat.Schedule(graph, Milestones())
    with distilled(graph, teacher, STRONG) as adjust_loss:
        modes = {"before_step": schedule.before_step, "set_training": schedule.set_training}
        hooks = Hooks(**modes, adjust_loss=adjust_loss)
        curve = fit(graph, dataset(), training(epochs=8, learning_rate=0.005), 0, hooks)
    assert schedule.phase == "freeze_bn"
    # Nine tenths of it are the features' at first.
    assert curve[-1]["loss"] < 0.3 * curve[0]["loss"]
    assert loss_of(graph.cpu(), teacher, SOFT, x) < 0.3 * before


@pytest.mark.parametrize("make", [small, lambda: teacher_and_graph()[1]])
def test_only_features_are_watched_and_only_inside(make: Callable[[], Any]) -> None:
    model, teacher = make(), small(layers=(2, 1, 1, 1))

    def interrupted() -> None:
        with distilled(model, teacher, BOTH):
            assert hooks_of(model) == 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hooks_of(model) == hooks_of(teacher) == 0
    with distilled(model, teacher, SOFT):
        assert hooks_of(model) == hooks_of(teacher) == 0


def test_features_are_those_of_the_step() -> None:
    model, teacher, x = small(seed=1), small(), images(4)
    wanted = loss_of(model, teacher, BOTH, x)
    with distilled(model, teacher, BOTH) as adjust_loss:
        with torch.inference_mode():
            model(images(2))
        logits = model(x)
        found = adjust_loss(x, logits, torch.tensor(0.0))
        with pytest.raises(RuntimeError, match="has not run since the last loss"):
            adjust_loss(x, logits, LABEL_LOSS)
    assert torch.equal(found, wanted)
    found.backward()


@pytest.mark.parametrize("config", [FEATURES, SOFT])
@pytest.mark.parametrize("make", [lambda: small(seed=1, layers=SHALLOW), prepared])
def test_other_classes_are_refused(config: DistillConfig, make: Callable[[], Any]) -> None:
    teacher = ResNeSt(replace(small(layers=SHALLOW).config, num_classes=CLASSES + 2))
    with pytest.raises(ValueError, match="5 classes, the teacher 7"):
        loss_of(make(), teacher, config, images(2))


def test_other_stages_are_refused_where_features_are_compared() -> None:
    for model in (prepared(), small(layers=SHALLOW), branch_form(small(layers=SHALLOW))):
        with (
            pytest.raises(ValueError, match="the student has no stage layer1; set features to 0"),
            distilled(model, small(), FEATURES),
        ):
            pass
        assert hooks_of(model) == 0
        loss_of(model, small(), SOFT, images(2))
    with pytest.raises(ValueError, match="the teacher has no stages"):
        distillation(small(), small(), FEATURES, ()).__enter__()


def test_stages_of_other_places_are_refused() -> None:
    """The same stage behind a stem that leaves the image four times as large."""
    model = small(layers=SHALLOW, stem="small")
    message = "layer2 of the student gives 16 x 16 places, of the teacher 4 x 4"
    with pytest.raises(ValueError, match=message):
        loss_of(model, small(layers=SHALLOW), FEATURES, images(2))


def test_a_stage_may_have_another_number_of_blocks() -> None:
    """Its end is found by its module's path in any form: blocks are not counted."""
    _, graph = teacher_and_graph()
    shallow, x = small(), images(3)
    assert loss_of(graph, shallow, FEATURES, x).item() > 1e-3
    float_form = small(layers=(2, 1, 1, 1))
    wanted = loss_of(float_form, shallow, FEATURES, x)
    torch.testing.assert_close(loss_of(graph, shallow, FEATURES, x), wanted, rtol=1e-4, atol=0)
