"""Mixing, dropping, averaging and milestones: what they do, and that each can be stopped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.base.errors import InputError
from pipeline.compress.training.hooks import Hooks, Step
from pipeline.compress.training.regularize import drop_while_training
from pipeline.compress.training.resume import Saves
from pipeline.compress.training.schedule import learning_rate_factor
from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import DropBlock
from pipeline.recipe.input_shape import square
from pipeline.recipe.recipe import load_recipes
from pipeline.recipe.training import AugmentConfig, TrainConfig
from pipeline.tasks.images.augment import by_policy, random_parts
from pipeline.tasks.mixing import mixer
from tests.making.networks import CLASSES, ONE_BLOCK, dataset, same_state, small
from tests.making.recipes import DEVICE_RECIPES, device_recipe
from tests.making.training import fit


def config(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 6, "learning_rate": 0.05}
    return TrainConfig(**settings | changes)


def images() -> torch.Tensor:
    """Four images that are one number each."""
    return torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).contiguous()


LABELS = torch.tensor([0, 1, 2, 3])


def test_nothing_is_mixed_unless_asked() -> None:
    assert mixer(config(), CLASSES) is None


def test_mixup_adds_images_as_it_adds_their_classes() -> None:
    torch.manual_seed(0)
    mix = mixer(config(mixup=0.4), 4)
    assert mix is not None
    mixed, shares = mix(images(), LABELS)
    assert shares.shape == (4, 4)
    # Image n is n everywhere, so a mixed image is the mean of its classes by their shares.
    expected = (shares * torch.arange(4.0)).sum(1)
    assert torch.allclose(mixed, expected[:, None, None, None].expand_as(mixed), atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(4))
    assert ((shares > 0).sum(1) == 2).all()


def test_cutmix_counts_the_pixels_of_each_class() -> None:
    torch.manual_seed(1)
    mix = mixer(config(cutmix=1.0), 4)
    assert mix is not None
    mixed, shares = mix(images(), LABELS)
    for image, share in zip(mixed, shares, strict=True):
        for label in range(4):
            pixels = (image[0] == label).float().mean()
            assert share[label].item() == pytest.approx(pixels.item(), abs=1e-6)


def test_with_both_every_batch_takes_one() -> None:
    torch.manual_seed(0)
    mix = mixer(config(mixup=0.4, cutmix=1.0), 4)
    assert mix is not None
    whole = [
        bool(torch.equal(found, found.round()))
        for found, _ in (mix(images(), LABELS) for _ in range(20))
    ]
    assert set(whole) == {True, False}


POLICIES = ("autoaugment", "autoaugment_cifar10", "randaugment", "trivialaugment")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_every_image_by_itself(policy: str) -> None:
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(12, 3, 32, 32)
    torch.manual_seed(0)
    found = by_policy(pixels, policy)
    assert (found.dtype, found.shape) == (torch.uint8, pixels.shape)
    assert len({image.numpy().tobytes() for image in found}) > 4
    torch.manual_seed(0)
    assert torch.equal(by_policy(pixels, policy), found)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_random_part_has_its_share_of_the_area(share: float) -> None:
    ramp = torch.arange(64).mul(4).to(torch.uint8)
    pixels = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), ramp.expand(64, 64)])
    torch.manual_seed(0)
    found = random_parts(pixels.expand(40, 3, 64, 64), (share, share), square(64))
    assert (found.dtype, found.shape) == (torch.uint8, (40, 3, 64, 64))
    # Of a ramp, what is seen of it is how far it goes.
    seen = [(int(one[c].max()) - int(one[c].min())) / 252 for one in found for c in (0, 1)]
    areas = [across * down for across, down in zip(seen[::2], seen[1::2], strict=True)]
    assert sum(areas) / len(areas) == pytest.approx(share, abs=0.05)
    assert all(
        0.6 < across / down < 1.6 for across, down in zip(seen[::2], seen[1::2], strict=True)
    )


def test_the_least_share_comes_first() -> None:
    with pytest.raises(ValueError, match=r"the least share comes first: \[0.2, 0.5\]"):
        AugmentConfig(crop=(0.5, 0.2))


def test_a_training_with_a_policy_is_repeatable_and_another_one() -> None:
    def train(policy: str | None) -> nn.Module:
        model = small(layers=ONE_BLOCK)
        augment = AugmentConfig(policy=policy, flip=True)  # type: ignore[arg-type]
        fit(model, dataset(), config(augment=augment), 0)
        return model.cpu()

    assert same_state(train("randaugment"), train("randaugment"))
    assert not same_state(train("randaugment"), train(None))


def test_squares_are_dropped_in_the_last_two_stages() -> None:
    model = small(layers=(1, 1, 1, 1))
    drop_while_training(FAMILY, model, config(dropblock=0.1, dropout=0.2))
    found = [
        {module.probability for module in stage.modules() if isinstance(module, DropBlock)}
        for stage in model.stages()
    ]
    assert [0.1 in probabilities for probabilities in found] == [False, False, True, True]
    assert model.drop.p == 0.2


def test_the_averages_are_the_weights_at_the_end() -> None:
    """Followed by hand, step by step."""
    decay = 0.9
    model = small(layers=ONE_BLOCK)
    model.to(memory_format=torch.channels_last)
    expected = [p.detach().clone() for p in model.parameters()]
    first = True

    def follow() -> None:
        nonlocal first, expected
        now = [p.detach().clone() for p in model.parameters()]
        # The first update takes the weights as they are.
        expected = (
            now
            if first
            else [decay * old + (1 - decay) * new for old, new in zip(expected, now, strict=True)]
        )
        first = False

    fit(model, dataset(), config(ema=decay), 0, Hooks(after_step=follow))
    for found, wanted in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_without_epochs_averages_change_nothing() -> None:
    model = small(layers=ONE_BLOCK)
    before = copy.deepcopy(model)
    fit(model, dataset(), config(ema=0.9, epochs=0), 0)
    assert same_state(model.cpu(), before)


def test_milestones_divide_the_rate_by_ten() -> None:
    factors = [learning_rate_factor(step, 10, 2, [4, 8]) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    curve = fit(small(layers=ONE_BLOCK), dataset(), config(epochs=3, milestones=(1, 2)), 0)
    assert [one["learning_rate"] for one in curve] == pytest.approx([0.05, 0.005, 0.0005])


class Stopped(Exception):
    """In place of a signal that kills."""


ALL = config(
    epochs=3,
    mixup=0.2,
    cutmix=1.0,
    ema=0.9,
    milestones=(1,),
    label_smoothing=0.1,
    augment=AugmentConfig(crop=(0.5, 1.0), policy="randaugment", shift=0.1),
)


def trained(saves: Saves | None, stop_after: int | None = None) -> tuple[nn.Module, Any] | None:
    model = small(layers=ONE_BLOCK, dropblock=0.1, dropout=0.2)

    def watch(step: Step) -> None:
        if step.step == stop_after:
            raise Stopped

    try:
        curve = fit(model, dataset(), ALL, 3, Hooks(watch=watch), saves)
    except Stopped:
        return None
    return model.cpu(), curve


def test_stopped_with_all_of_it_a_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(None)
    assert whole is not None
    for stop in (1, 4, 8):
        saves = tmp_path / str(stop)
        assert trained(Saves(directory=saves, steps=1), stop_after=stop) is None
        found = trained(Saves(directory=saves, steps=1))
        assert found is not None
        assert same_state(found[0], whole[0]), stop
        assert found[1] == whole[1]


@pytest.mark.parametrize("name", ["dropblock", "dropout", "ema"])
@pytest.mark.parametrize("part", ["prune.finetune", "qat.train"])
def test_later_trainings_drop_and_average_nothing(part: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: got 0\.5; only `train` can have it"):
        load_recipes([DEVICE_RECIPES["onnx"]], [f"{part}.{name}=0.5"])
    recipe = device_recipe(f"train.{name}=0.5")
    assert getattr(recipe.train, name) == 0.5
