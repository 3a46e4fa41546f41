"""Distillation: the formula by hand, the teacher untouched, the student's graph left as it was."""

import copy
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.removal import remove
from pipeline.compress.quantization import qat
from pipeline.compress.training.distill import (
    AdjustLoss,
    attention_map,
    attention_transfer,
    distillation,
    soft_target_loss,
)
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.small_maps import ByProducts
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.networks.rewrites import Normalization
from pipeline.recipe.compression import Milestones
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import DistillConfig, TrainConfig
from pipeline.tasks.images.pixels import normalize
from tests.making.graphs import calibrated, prepared
from tests.making.networks import (
    CLASSES,
    ONE_BLOCK,
    SHALLOW,
    SIDE,
    VARIANTS,
    dataset,
    images,
    same_state,
    small,
    structure,
)
from tests.making.training import fit

pytestmark = pytest.mark.slow

SOFT = DistillConfig(weight=1.0)
FEATURES = DistillConfig(weight=0.0, features=1.0)
BOTH = DistillConfig(weight=0.5, features=1.0)
STRONG = DistillConfig(weight=1.0, features=200.0)
NONE = DistillConfig(weight=0.0, features=0.0)
LABEL_LOSS = torch.tensor(1.25)
STUDENT = small(seed=1, layers=ONE_BLOCK)
# What camera pixels are to the images of `dataset`.
NORMALIZATION = Normalization(mean=dataset().mean, std=dataset().std)


def hard_way(logits: Tensor, teacher: Tensor, temperature: float) -> float:
    """The soft target loss in Python floats, sum by sum."""
    total = 0.0
    for student_row, teacher_row in zip(logits.tolist(), teacher.tolist(), strict=True):
        both = []
        for row in (student_row, teacher_row):
            scaled = [value / temperature for value in row]
            top = max(scaled)
            log_sum = top + math.log(sum(math.exp(value - top) for value in scaled))
            both.append([value - log_sum for value in scaled])
        total += sum(math.exp(t) * (t - s) for s, t in zip(*both, strict=True))
    return temperature**2 * total / len(logits)


def distilled(
    student: nn.Module,
    teacher: ResNeSt,
    config: DistillConfig,
    normalization: Normalization | None = None,
) -> AbstractContextManager[AdjustLoss]:
    """Taught at the ends of all the teacher's stages."""
    return distillation(student, teacher, config, teacher.stage_names(), normalization)


class Known(ResNeSt):
    """A teacher whose logits are known beforehand."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(STUDENT.config)
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


@settings(deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    batch=st.integers(1, 6),
    temperature=st.floats(0.1, 100),
    weight=st.floats(0, 1),
)
def test_the_loss_by_hand(seed: int, batch: int, temperature: float, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = 5 * torch.randn(2, batch, CLASSES, generator=generator).double()
    config = DistillConfig(temperature=temperature, weight=weight)
    with distilled(STUDENT, Known(teacher), config) as adjust_loss:
        found = adjust_loss(images(batch), logits, LABEL_LOSS.double()).item()
    soft = hard_way(logits, teacher, temperature)
    assert found == pytest.approx((1 - weight) * 1.25 + weight * soft, rel=1e-9)


def test_attention_transfer_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 6, 4, 4), (3, 8, 2, 2)]
    ours = [torch.randn(shape, generator=generator) for shape in shapes]
    # Other widths: only where a network responds is compared.
    theirs = [torch.randn(n, 2 * c, h, w, generator=generator) for n, c, h, w in shapes]
    wanted = 0.0
    for one, two in zip(ours, theirs, strict=True):
        maps = []
        for features in (one.double(), two.double()):
            summed = (features**2).sum(1).reshape(3, -1)
            maps.append(summed / (summed**2).sum(1, keepdim=True).sqrt())
        wanted += ((maps[0] - maps[1]) ** 2).mean().item()
    assert attention_transfer(ours, theirs).item() == pytest.approx(wanted, rel=1e-5)
    # Neither the size of the activations nor their order among the channels counts.
    others = [-3 * features.flip(1) for features in ours]
    assert attention_transfer(ours, others).item() == pytest.approx(0.0, abs=1e-12)


def test_a_map_of_zeros_has_a_gradient() -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_map(features).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_the_teacher_answers_by_torch_s_own_convolutions() -> None:
    teacher = ResNeSt(STUDENT.config).eval()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in teacher.modules())
    with (
        distilled(STUDENT, teacher, SOFT) as adjust_loss,
        torch.profiler.profile() as seen,
        ByProducts(),
    ):
        adjust_loss(images(2), torch.zeros(2, CLASSES), LABEL_LOSS)
    (event,) = (event for event in seen.key_averages() if event.key == "aten::conv2d")
    assert event.count == convolutions


def test_without_weights_the_loss_is_that_of_the_labels() -> None:
    teacher = Known(torch.full((2, CLASSES), float("nan")))  # not even asked
    with distilled(STUDENT, teacher, NONE) as adjust_loss:
        assert adjust_loss(images(2), torch.zeros(2, CLASSES), LABEL_LOSS) is LABEL_LOSS


def loss_of(student: Any, teacher: ResNeSt, config: DistillConfig, x: Tensor) -> Tensor:
    """The adjusted loss of one batch, that of the labels being 0."""
    with distilled(student, teacher, config) as adjust_loss:
        return adjust_loss(x, student(x), torch.tensor(0.0))


@pytest.mark.parametrize("config", [SOFT, FEATURES, BOTH])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_has_nothing_to_learn_from_itself(config: DistillConfig, batch: int) -> None:
    model = small()
    assert loss_of(model, copy.deepcopy(model), config, images(batch)).item() == 0.0
    assert loss_of(model, small(seed=1), config, images(batch)).item() > 1e-3
    # The other form of the same function, too.
    assert abs(loss_of(branch_form(model), model, config, images(batch)).item()) < 1e-6


def training(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 1, "batch_size": 8, "learning_rate": 0.05} | changes)


def teach(student: Any, teacher: ResNeSt, config: DistillConfig, **changes: Any) -> None:
    with distilled(student, teacher, config) as adjust_loss:
        fit(student, dataset(), training(**changes), 0, Hooks(adjust_loss=adjust_loss))
    student.cpu()


@pytest.mark.parametrize("mode", [True, False])
def test_the_teacher_stays_as_it_is(mode: bool) -> None:
    teacher = small(dropout=0.5, dropblock=0.5).train(mode)
    before = copy.deepcopy(teacher)
    model = small(seed=1)
    teach(model, teacher, BOTH)
    assert not same_state(model, small(seed=1))
    assert same_state(teacher, before)
    assert teacher.training is mode
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_the_teacher_answers_without_dropout_and_statistics_of_the_batch() -> None:
    teacher = small(dropout=0.5, dropblock=0.5)
    model, x = small(seed=1), images(4)
    wanted = soft_target_loss(model(x), teacher(x), SOFT.temperature)
    state = torch.get_rng_state()
    found = loss_of(model, teacher.train(), SOFT, x)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("config", [SOFT, FEATURES])
def test_gradients_reach_the_student_alone(config: DistillConfig) -> None:
    model, teacher = small(seed=1), small()
    loss_of(model, teacher, config, images(4)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"conv1.0.weight", *(f"layer{i}.0.conv3.weight" for i in (1, 2, 3))} <= reached
    assert ("fc.weight" in reached) is (config is SOFT)


def seen() -> Tensor:
    """The images that `teach` trains on."""
    return normalize(dataset().train.source, NORMALIZATION.mean, NORMALIZATION.std)


def test_a_narrow_student_comes_closer_to_its_teacher() -> None:
    teacher = small(width_multiplier=0.5, layers=SHALLOW)
    teach(teacher, teacher, NONE, epochs=4, learning_rate=0.02)
    model = small(seed=1, layers=SHALLOW)
    before = loss_of(model, teacher, SOFT, seen())
    teach(model, teacher, SOFT, epochs=8, learning_rate=0.02)
    assert loss_of(model, teacher, SOFT, seen()) < 0.5 * before


def test_a_pruned_network_learns_from_its_original() -> None:
    original = small()
    branched, x = branch_form(original), images(8)
    found = groups_of(branched, square(SIDE), structure(branched))
    every_second = {group.name: range(0, group.channels, 2) for group in found}
    model = remove(branched, found, every_second)
    before = {c: loss_of(model, original, c, x).item() for c in (SOFT, FEATURES)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(20):
        loss_of(model, original, STRONG, x).backward()
        optimizer.step()
        optimizer.zero_grad()
    for kind, loss in before.items():
        assert loss_of(model, original, kind, x).item() < 0.5 * loss, kind


def test_pixels_are_normalised_for_the_teacher() -> None:
    model, teacher = small(seed=1), small()
    pixels = dataset(4).train.source
    normalised = normalize(pixels, NORMALIZATION.mean, NORMALIZATION.std)
    wanted = loss_of(model, teacher, BOTH, normalised)
    found = []
    for normalization in (NORMALIZATION, None):
        with distilled(model, teacher, BOTH, normalization) as adjust_loss:
            found.append(adjust_loss(pixels.float(), model(normalised), torch.tensor(0.0)))
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=0)
    assert abs(found[1] - wanted) > 0.01 * wanted


def test_the_copy_of_the_teacher_follows_the_images() -> None:
    model, teacher = small(seed=1).to("meta"), small()
    x = images(2).to("meta")
    with distilled(model, teacher, BOTH, NORMALIZATION) as adjust_loss:
        assert adjust_loss(x, model(x), LABEL_LOSS.to("meta")).is_meta
    assert not any(parameter.is_meta for parameter in teacher.parameters())


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
