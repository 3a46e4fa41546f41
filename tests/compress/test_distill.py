"""Distillation: the formula by hand, the teacher untouched, the student's graph left as it was."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.compress.pruning.followed import groups_of
from pipeline.compress.pruning.removal import remove
from pipeline.compress.training.distill import (
    attention_map,
    attention_transfer,
    soft_target_loss,
)
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.small_maps import ByProducts
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import DistillConfig
from pipeline.tasks.images.pixels import normalize
from tests.making.distilling import (
    BOTH,
    FEATURES,
    LABEL_LOSS,
    NORMALIZATION,
    SOFT,
    STRONG,
    distilled,
    loss_of,
    seen,
    training,
)
from tests.making.networks import (
    CLASSES,
    ONE_BLOCK,
    SHALLOW,
    SIDE,
    dataset,
    images,
    same_state,
    small,
    structure,
)
from tests.making.training import fit

pytestmark = pytest.mark.slow

NONE = DistillConfig(weight=0.0, features=0.0)
STUDENT = small(seed=1, layers=ONE_BLOCK)


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


@pytest.mark.parametrize("config", [SOFT, FEATURES, BOTH])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_has_nothing_to_learn_from_itself(config: DistillConfig, batch: int) -> None:
    model = small()
    assert loss_of(model, copy.deepcopy(model), config, images(batch)).item() == 0.0
    assert loss_of(model, small(seed=1), config, images(batch)).item() > 1e-3
    # The other form of the same function, too.
    assert abs(loss_of(branch_form(model), model, config, images(batch)).item()) < 1e-6


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
