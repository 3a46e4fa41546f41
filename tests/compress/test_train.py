"""One training loop: repeatable to the bit, honest about failure, accuracy counted right."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.base import torchrun
from pipeline.base.errors import InputError
from pipeline.base.torchrun import device
from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize
from pipeline.compress.training.hooks import Hooks, Step
from pipeline.compress.training.schedule import learning_rate_factor
from pipeline.networks.checkpoints import WEIGHTS
from pipeline.recipe.compression import Milestones
from pipeline.recipe.input_shape import square
from pipeline.recipe.training import AugmentConfig, TrainConfig
from pipeline.stages import train
from pipeline.tasks.images.pixels import normalize
from tests.making.graphs import calibrated
from tests.making.networks import CLASSES, ONE_BLOCK, SIDE, dataset, same_state, small
from tests.making.recipes import device_recipe
from tests.making.runs import context as making_context
from tests.making.tiny import tiny
from tests.making.training import evaluate, fit


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 6, "learning_rate": 0.05}
    return TrainConfig(**settings | changes)


def trained(seed: int, make: Callable[[], nn.Module] = tiny, **changes: Any) -> nn.Module:
    model = make()
    fit(model, dataset(), config(**changes), seed)
    return model.cpu()


AUGMENTED = AugmentConfig(shift=0.1, rotate_deg=10, scale=0.1, flip=True)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    one, two, other = (trained(seed, augment=AUGMENTED) for seed in (3, 3, 4))
    assert same_state(one, two)
    assert not same_state(one, other)


def test_a_network_with_dropblock_is_repeatable_too() -> None:
    def make() -> nn.Module:
        return small(layers=ONE_BLOCK, dropblock=0.1, dropout=0.2)

    one, two = (trained(1, make, epochs=1) for _ in range(2))
    assert same_state(one, two)
    assert not same_state(one, trained(2, make, epochs=1))


def test_augmentation_changes_the_training() -> None:
    assert not same_state(trained(3), trained(3, augment=AUGMENTED))


def test_training_learns() -> None:
    model = tiny()
    images = dataset(40)
    curve = fit(model, images, config(epochs=25, batch_size=10, learning_rate=0.2), 0)
    assert [row["epoch"] for row in curve] == list(range(1, 26))
    assert curve[-1]["loss"] < 0.6 * curve[0]["loss"]
    assert curve[-1]["accuracy"] > 0.9
    assert curve[-1]["learning_rate"] < 0.2 * 0.01
    assert not model.training
    assert evaluate(model, images)["test"].top1 > 0.9


def test_no_epoch_leaves_the_weights_alone() -> None:
    model = tiny()
    before = copy.deepcopy(model)
    assert fit(model, dataset(), config(epochs=0), 0) == []
    assert same_state(model.cpu(), before)
    assert not model.training


@pytest.mark.parametrize("rate", [1e30, 1e38])
def test_a_loss_that_is_not_finite_names_the_step(rate: float) -> None:
    message = rf"(nan|inf) at step \d+ with learning_rate {re.escape(f'{rate:g}')}; .* clip_norm"
    steps: list[int] = []
    hooks = Hooks(before_step=lambda step, _: steps.append(step))
    with pytest.raises(InputError, match=message) as caught:
        fit(tiny(), dataset(), config(learning_rate=rate, epochs=20), 0, hooks)
    assert f"at step {steps[-1] + 1} with" in str(caught.value)


def test_hooks_are_called_for_every_step() -> None:
    begun: list[tuple[int, int]] = []
    seen: list[Step] = []
    modes: list[bool] = []
    hooks = Hooks(
        watch=seen.append,
        before_step=lambda step, steps: begun.append((step, steps)),
        set_training=lambda model, mode: modes.append(mode) or model.train(mode),
    )
    # 13 images: two batches of six; the last one is left out.
    curve = fit(tiny(), dataset(13), config(epochs=3), 0, hooks)
    assert begun == [(step, 6) for step in range(6)]
    assert [step.step for step in seen] == [1, 2, 3, 4, 5, 6]
    assert {step.steps for step in seen} == {6}
    assert [step.epoch for step in seen] == [1, 1, 2, 2, 3, 3]
    assert modes == [True, True, True, False]
    assert [seen[i].loss for i in (1, 3, 5)] == [row["loss"] for row in curve]


def test_gradients_are_there_before_the_weights_change() -> None:
    model = tiny()
    order: list[str] = []
    known = copy.deepcopy(model.state_dict())

    def note(name: str, *, gradients: bool, changed: bool) -> None:
        order.append(name)
        assert all((p.grad is not None) is gradients for p in model.parameters())
        for key, parameter in model.named_parameters():
            if key.endswith("weight"):
                assert torch.equal(parameter, known[key]) is not changed, (name, key)

    def after_step() -> None:
        note("after_step", gradients=True, changed=True)
        known.update(copy.deepcopy(model.state_dict()))

    hooks = Hooks(
        before_step=lambda *_: note("before_step", gradients=False, changed=False),
        after_backward=lambda: note("after_backward", gradients=True, changed=False),
        after_step=after_step,
        watch=lambda _: order.append("watch"),
    )
    # The gradients after_backward sees are the clipped ones, which change the weights.
    fit(model, dataset(12), config(epochs=2, clip_norm=1.0), 0, hooks)
    assert order == 4 * ["before_step", "after_backward", "after_step", "watch"]


def test_gradients_after_backward_are_clipped_and_can_be_changed() -> None:
    model = tiny()
    before = copy.deepcopy(model)
    norms: list[float] = []

    def remove_gradients() -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        torch._foreach_zero_(gradients)

    hooks = Hooks(after_backward=remove_gradients)
    fit(model, dataset(), config(epochs=1, weight_decay=0.0, clip_norm=1e-3), 0, hooks)
    assert norms == pytest.approx([1e-3] * len(norms), rel=0.02)
    pairs = zip(model.cpu().parameters(), before.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_what_a_hook_makes_of_the_loss_is_minimised() -> None:
    seen: list[float] = []

    def square_of_logits(images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        assert images.shape == (8, 3, SIDE, SIDE)
        assert logits.shape == (8, CLASSES)
        assert loss.requires_grad
        assert images.device == logits.device == loss.device
        seen.append(logits.square().mean().item())
        return logits.square().mean() + 0 * loss

    hooks = Hooks(adjust_loss=square_of_logits)
    curve = fit(tiny(), dataset(), config(epochs=10, batch_size=8), 0, hooks)
    assert seen[-1] < 0.5 * seen[0]
    assert curve[-1]["loss"] == pytest.approx((seen[-2] + seen[-1]) / 2)


def test_hooks_that_do_nothing_change_nothing() -> None:
    model = tiny()
    fit(model, dataset(), config(), 3, Hooks())
    assert same_state(model.cpu(), trained(3))


class Constant(nn.Module):
    """Logits that depend on no parameter: what changes a weight is weight decay alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = tiny()
        with torch.no_grad():
            for parameter in self.body.parameters():
                parameter.fill_(1.0)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) * 0.0
        return out


def test_weight_decay_spares_biases_batch_norms_and_constants() -> None:
    model = Constant()
    # One step at the full rate without momentum: w - 0.5 * 0.1 * w.
    settings = {"epochs": 1, "batch_size": 16, "momentum": 0.0, "weight_decay": 0.1}
    fit(model, dataset(), config(learning_rate=0.5, **settings), 0)
    for name, parameter in model.cpu().named_parameters():
        wanted = 0.95 if name in {"body.0.weight", "body.5.weight"} else 1.0
        torch.testing.assert_close(parameter.data, torch.full_like(parameter, wanted))


def test_clipping_bounds_the_step() -> None:
    model = tiny()
    before = copy.deepcopy(model)
    settings = {"epochs": 1, "batch_size": 16, "momentum": 0.0, "weight_decay": 0.0}
    fit(model, dataset(), config(learning_rate=1.0, clip_norm=1e-3, **settings), 0)
    pairs = zip(model.cpu().parameters(), before.parameters(), strict=True)
    moved = torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=0.02)


steps = st.integers(1, 1000)


@given(total=steps, share=st.floats(0, 1.5), data=st.data())
def test_learning_rate_factor_is_between_0_and_1(
    total: int, share: float, data: st.DataObject
) -> None:
    warmup = int(total * share)
    step = data.draw(st.integers(0, total - 1))
    factor = learning_rate_factor(step, total, warmup)
    following = learning_rate_factor(step + 1, total, warmup)
    assert 0.0 < factor <= 1.0
    assert 0.0 <= following <= 1.0
    if step + 1 < warmup:
        assert following > factor
    elif step >= warmup:
        assert following < factor


@given(total=steps)
def test_learning_rate_factor_at_its_ends(total: int) -> None:
    assert learning_rate_factor(0, total, 0) == 1.0
    assert learning_rate_factor(total, total, 0) == pytest.approx(0.0)
    assert learning_rate_factor(total, 2 * total, 0) == pytest.approx(0.5)
    assert learning_rate_factor(total - 1, 2 * total, total) == 1.0
    assert learning_rate_factor(0, 2 * total, total) == pytest.approx(1 / total)


@pytest.mark.parametrize(
    ("sizes", "seen"), [((), [32, 32, 32]), ((64, 96), [64, 64, 96]), ((64, 96, 32), [64, 96, 32])]
)
def test_sizes_share_the_steps(sizes: tuple[int, ...], seen: list[int]) -> None:
    model, sides = tiny(), []
    model[0].register_forward_pre_hook(
        lambda module, x: sides.append(tuple(x[0].shape[-2:])) if module.training else None
    )
    images = dataset()
    fit(model, images, config(epochs=3, batch_size=len(images.train), sizes=sizes), seed=0)
    assert sides == [(side, side) for side in seen]


def test_training_from_random_weights_starts_from_the_shortcuts(tmp_path: Path) -> None:
    narrow = ("model.name=resnest14", "model.width_multiplier=0.25", "train.epochs=0")
    recipe = device_recipe(*narrow)
    context = making_context(recipe)
    train.train(context, {}, tmp_path)
    last = [v for k, v in load_file(tmp_path / WEIGHTS).items() if k.endswith(".bn3.weight")]
    assert len(last) == 4
    assert not any(scale.any() for scale in last)


def test_small_images_can_be_parts_of_the_whole_ones() -> None:
    model, seen = tiny(), []
    model[0].register_forward_pre_hook(lambda module, x: seen.append(x[0].clone()))
    whole = dataset()
    noise = torch.randint(0, 256, (64, 64), generator=torch.Generator().manual_seed(0))
    pixels = noise.to(torch.uint8).expand(len(whole.train), 3, 64, 64)
    large = replace(whole, train=replace(whole.train, source=pixels, shape=square(64)))
    fit(model, large, config(epochs=4, sizes=(32,), shrink="crop"), seed=0)
    normal = normalize(pixels[:1], whole.mean, whole.std)
    parts = normal.unfold(2, 32, 1).unfold(3, 32, 1)[0].flatten(1, 2).unbind(1)
    found = {next(i for i, part in enumerate(parts) if torch.equal(part, x[0])) for x in seen}
    assert len(found) > len(seen) / 2


def test_the_device_is_one_that_exists() -> None:
    assert (device().type == "cuda") == torch.cuda.is_available()


def trained_in(precision: str, monkeypatch: pytest.MonkeyPatch, *, flag: str) -> list[torch.dtype]:
    """Types of a convolution's outputs in training and evaluation, in the order seen."""
    monkeypatch.setattr(torchrun, "cpu_flags", lambda: frozenset({"avx2", flag}))
    model = tiny()
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda module, x, y: seen.append(y.dtype))
    fit(model, dataset(), config(precision=precision), seed=0)
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32, torch.int64}
    assert all(v.is_contiguous() for v in model.state_dict().values())
    evaluate(model, dataset())
    assert seen[-1] == torch.float32
    return seen[:-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a GPU does is another matter")
@pytest.mark.parametrize(
    ("precision", "flag", "wanted"),
    [
        ("auto", "amx_bf16", torch.bfloat16),
        ("auto", "avx512_bf16", torch.bfloat16),
        ("auto", "avx512_vnni", torch.float32),
        ("bfloat16", "avx512_vnni", torch.bfloat16),
        ("float32", "amx_bf16", torch.float32),
    ],
)
def test_training_multiplies_in_the_precision_of_the_recipe(
    precision: str, flag: str, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(trained_in(precision, monkeypatch, flag=flag)) == {wanted}


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_quantization_aware_training_keeps_to_float32_unless_told(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrun, "cpu_flags", lambda: frozenset({"amx_bf16"}))
    graph = calibrated()
    given: list[torch.dtype] = []
    made: list[torch.dtype] = []

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given.append(inputs[0].dtype)
        made.append(output.dtype)

    for module in graph.modules():
        if type(module) is ActivationFakeQuantize:
            module.register_forward_hook(see)
    schedule = qat.Schedule(graph, Milestones(observe=0, fake_quantize=0))
    hooks = Hooks(before_step=schedule.before_step, set_training=schedule.set_training)
    curve = fit(graph, dataset(), config(epochs=1, precision=precision), 0, hooks)
    assert math.isfinite(curve[0]["loss"])
    assert set(made) == {torch.float32}  # in bfloat16 the steps of a grid would not be told apart
    assert (torch.bfloat16 in given) == (precision == "bfloat16")
