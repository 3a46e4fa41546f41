"""Batches: normalised, changed at random, each image once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.recipe.input_shape import square
from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images.augment import augment, augment_as, draw_changes, random_parts
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images, normalize
from tests.making.datasets import GENTLE, in_memory
from tests.making.photos import (
    SIZE,
)


def test_random_parts_are_scaled_as_the_images_are() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 24, 24), np.uint8))
    _, dataset = in_memory(6)
    config = AugmentConfig(crop=(0.2, 0.9))
    found = {}
    for interpolation in ("bilinear", "bicubic"):
        images = Images(
            labels=torch.arange(6) % 2,
            shape=square(24),
            source=noise,
            interpolation=interpolation,
        )
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        given = batches(images, 6, dataset, augment_config=config, generator=generator)
        found[interpolation] = next(given)[0] * 255
        torch.manual_seed(0)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
        parts = random_parts(noise[order], (0.2, 0.9), square(24), interpolation)
        assert torch.equal(found[interpolation].round().to(torch.uint8), parts)
    assert not torch.equal(found["bilinear"], found["bicubic"])


@GENTLE
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
    seed=st.integers(0, 2**31),
)
def test_normalize_can_be_inverted(
    mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 3, 5, 5), generator=generator).to(torch.uint8)
    x = normalize(pixels, mean, std)
    assert x.dtype == torch.float32
    assert x.shape == pixels.shape
    channels = torch.tensor([mean, std]).view(2, 1, 3, 1, 1)
    back = (x * channels[1] + channels[0]) * 255
    assert torch.equal(back.round().to(torch.uint8), pixels)


def ramp(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((count, 3, SIZE, SIZE), generator=generator)


def test_augment_with_everything_off_is_the_identity() -> None:
    x = ramp(4)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(augment(x, AugmentConfig(), generator), x)
    assert torch.equal(generator.get_state(), before)


def test_flip_mirrors_about_half_of_the_images_exactly() -> None:
    x = ramp(200)
    out = augment(x, AugmentConfig(flip=True), torch.Generator().manual_seed(0))
    same = (out == x).flatten(1).all(1)
    mirrored = (out == x.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 70 < int(mirrored.sum()) < 130


@GENTLE
@given(
    shift=st.floats(0, 0.5),
    rotate_deg=st.floats(0, 180),
    scale=st.floats(0, 0.5),
    flip=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_augment_keeps_shape_and_range_and_is_repeatable(
    shift: float, rotate_deg: float, scale: float, flip: bool, seed: int
) -> None:
    config = AugmentConfig(shift=shift, rotate_deg=rotate_deg, scale=scale, flip=flip)
    x = ramp(3)
    out = augment(x, config, torch.Generator().manual_seed(seed))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert bool(out.isfinite().all())
    assert x.min() - 1e-3 <= out.min() <= out.max() <= x.max() + 1e-3
    assert torch.equal(out, augment(x, config, torch.Generator().manual_seed(seed)))


def centre_of_mass(x: torch.Tensor) -> torch.Tensor:
    """Of each image's first channel, as [B, 2] x and y in pixels from the middle."""
    mass = x[:, 0] / x[:, 0].sum((1, 2), keepdim=True)
    place = torch.arange(SIZE) - (SIZE - 1) / 2
    return torch.stack(((mass.sum(1) * place).sum(1), (mass.sum(2) * place).sum(1)), dim=1)


def test_shift_moves_by_up_to_its_share_of_the_side() -> None:
    x = torch.zeros(300, 3, SIZE, SIZE)
    x[:, :, 14:18, 14:18] = 1
    out = augment(x, AugmentConfig(shift=0.25), torch.Generator().manual_seed(0))
    moved = centre_of_mass(out).abs()
    assert 7.5 < float(moved.max()) <= 8.01


def test_shift_alone_moves_by_whole_pixels_as_the_grid_does() -> None:
    x = torch.rand(60, 3, SIZE, SIZE)
    out = augment(x, AugmentConfig(shift=0.25), torch.Generator().manual_seed(0))
    draws = draw_changes(60, AugmentConfig(shift=0.25), torch.Generator().manual_seed(0))
    whole = (draws * 2 - 1) * SIZE * 0.25
    for image, shifted, (right, down) in zip(x, out, whole[3:].round().int().T, strict=True):
        padded = functional.pad(image[None], (8, 8, 8, 8), mode="replicate")[0]
        assert torch.equal(
            shifted, padded[:, 8 + down : 8 + down + SIZE, 8 + right : 8 + right + SIZE]
        )
    # The same places as where images are resampled, to half a pixel.
    nearly = augment_as(x, AugmentConfig(shift=0.25, rotate_deg=1e-9), draws)
    exact = draws.clone()
    exact[3:] = (whole[3:].round() / (SIZE * 0.25) + 1) / 2
    resampled = augment_as(x, AugmentConfig(shift=0.25, rotate_deg=1e-9), exact)
    assert torch.allclose(out, resampled, atol=1e-4)
    assert not torch.allclose(out, nearly, atol=1e-2)


def test_rotation_stays_within_its_angle_and_keeps_the_radius() -> None:
    x = torch.zeros(300, 3, SIZE, SIZE)
    x[:, :, 15:17, 25:27] = 1
    out = augment(x, AugmentConfig(rotate_deg=30), torch.Generator().manual_seed(0))
    centres = centre_of_mass(out)
    angles = torch.atan2(centres[:, 1], centres[:, 0]) * 180 / math.pi
    assert 28 < float(angles.abs().max()) < 31
    assert bool((angles < -10).any())
    assert bool((angles > 10).any())
    assert float((centres.norm(dim=1) - 10).abs().max()) < 0.3


def test_scale_enlarges_and_shrinks_within_its_share() -> None:
    x = torch.zeros(300, 3, SIZE, SIZE)
    x[:, :, 8:24, 8:24] = 1
    out = augment(x, AugmentConfig(scale=0.25), torch.Generator().manual_seed(0))
    sides = out[:, 0].sum((1, 2)).sqrt() / 16
    assert 0.73 < float(sides.min()) < 0.8
    assert 1.2 < float(sides.max()) < 1.27


def who(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


@GENTLE
@given(count=st.integers(0, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_batches_cover_every_image_once(count: int, batch_size: int, seed: int) -> None:
    images, dataset = in_memory(count)
    plain = list(batches(images, batch_size, dataset))
    assert [n for x, _ in plain for n in who(x)] == list(range(count))

    def shuffled() -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        epoch = list(batches(images, batch_size, dataset, generator=generator))
        for x, y in epoch:
            assert 2 <= len(x) <= max(batch_size, 2)
            assert x.dtype == torch.float32
            assert y.dtype == torch.int64
            assert [n % 2 for n in who(x)] == y.tolist()
        return [n for x, _ in epoch for n in who(x)]

    order = shuffled()
    assert order == shuffled()
    if batch_size == 1:
        assert order == []
        return
    dropped = int(count % batch_size == 1)
    assert len(set(order)) == len(order) == count - dropped


def test_each_epoch_of_one_generator_has_its_own_order() -> None:
    images, dataset = in_memory(40)
    generator = torch.Generator().manual_seed(0)
    epochs = [
        [n for x, _ in batches(images, 8, dataset, generator=generator) for n in who(x)]
        for _ in range(2)
    ]
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_batches_are_normalised_and_augmented_repeatably(digits: Dataset) -> None:
    config = AugmentConfig(shift=0.1, rotate_deg=10)
    runs = [
        torch.cat(
            [
                x
                for x, _ in batches(
                    digits.calibration,
                    64,
                    digits,
                    augment_config=config,
                    generator=torch.Generator().manual_seed(3),
                )
            ]
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0], runs[1])
    x, _ = next(batches(digits.calibration, 64, digits))
    expected = normalize(digits.calibration.pixels(torch.arange(64)), digits.mean, digits.std)
    assert torch.equal(x, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_augments_as_a_cpu_does(digits: Dataset) -> None:
    for config in (AugmentConfig(shift=0.1, flip=True), AugmentConfig(shift=0.1, rotate_deg=10)):
        (cpu, labels), (gpu, same_labels) = (
            next(
                batches(
                    digits.train,
                    64,
                    digits,
                    augment_config=config,
                    generator=torch.Generator().manual_seed(3),
                    place=torch.device(place),
                )
            )
            for place in ("cpu", "cuda")
        )
        assert gpu.device.type == "cuda"
        assert torch.equal(labels, same_labels)
        assert torch.allclose(cpu, gpu.cpu(), atol=1e-4)


def test_batches_are_sent_as_bytes_and_changed_where_they_come_to_be(digits: Dataset) -> None:
    """A device that computes nothing tells: what is drawn on the CPU must be sent there first."""
    config = AugmentConfig(shift=0.1, flip=True)
    generator, place = torch.Generator().manual_seed(0), torch.device("meta")
    given = batches(
        digits.train, 64, digits, augment_config=config, generator=generator, place=place
    )
    x, labels = next(given)
    assert (x.device.type, x.shape, x.dtype) == ("meta", (64, 3, SIZE, SIZE), torch.float32)
    assert labels.device.type == "cpu"


def test_batches_refuse_wrong_arguments_at_once() -> None:
    images, dataset = in_memory(4)
    with pytest.raises(ValueError, match="needs a generator"):
        batches(images, 2, dataset, augment_config=AugmentConfig())
    with pytest.raises(ValueError, match="batch_size: got 0"):
        batches(images, 0, dataset)
