"""Random changes of images in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.recipe.data import Interpolation
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.training import AugmentConfig

if TYPE_CHECKING:
    from torchvision.transforms.v2 import RandomResizedCrop


def random_parts(
    pixels: Tensor,
    crop: tuple[float, float],
    shape: InputShape,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """A random part of every image, resized (Szegedy et al. 2014, section 6).

    It draws from torch's own generator.

    Args:
        pixels: uint8 [B, C, R, S].
        crop: least and largest share of the area; the proportion of the sides is up to 4/3 or
            3/4 of that of `shape`.
        shape: C, H and W of what is returned.
        interpolation: of the resizing, with antialias.

    Returns:
        uint8 [B, C, H, W].
    """
    return _each(pixels, _part(crop, shape, interpolation))


def _part(
    crop: tuple[float, float], shape: InputShape, interpolation: Interpolation
) -> RandomResizedCrop:
    """What draws a part of all that it is given at a time, and resizes it."""
    # torchvision takes seconds to import.
    from torchvision.transforms import v2

    size = (shape.height, shape.width)
    aspect = shape.width / shape.height
    ratio = (aspect * 3 / 4, aspect * 4 / 3)
    by = v2.InterpolationMode(interpolation)
    return v2.RandomResizedCrop(size, scale=crop, ratio=ratio, interpolation=by)


def random_parts_of_both(
    pixels: Tensor,
    masks: Tensor,
    crop: tuple[float, float],
    shape: InputShape,
    interpolation: Interpolation = "bilinear",
) -> tuple[Tensor, Tensor]:
    """As `random_parts`, of images and of their masks (uint8 [B, H, W]): the same part of both."""
    # torchvision takes seconds to import.
    from torchvision.transforms import v2

    change, size = _part(crop, shape, interpolation), [shape.height, shape.width]
    by = v2.InterpolationMode(interpolation)
    # Not what the transform takes for masks: that begins at a pixel's corner, not in its middle.
    nearest = v2.InterpolationMode.NEAREST_EXACT
    images, parts = [], []
    for image, mask in zip(pixels, masks, strict=True):
        drawn = change.make_params([image])
        part = (drawn["top"], drawn["left"], drawn["height"], drawn["width"])
        images.append(v2.functional.resized_crop(image, *part, size, by))
        parts.append(v2.functional.resized_crop(mask[None], *part, size, nearest)[0])
    return torch.stack(images), torch.stack(parts)


def _each(pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The images changed one by one: a transform draws once for all that it is given."""
    return torch.stack([change(image) for image in pixels])


def by_policy(pixels: Tensor, policy: str) -> Tensor:
    """Every image changed by a policy that was found by search, or is drawn from all changes.

    autoaugment and autoaugment_cifar10: Cubuk et al. 2018, "AutoAugment: Learning Augmentation
    Policies from Data". randaugment: Cubuk et al. 2019, "RandAugment: Practical automated data
    augmentation with a reduced search space". trivialaugment: Müller and Hutter 2021,
    "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation". They draw from torch's
    own generator.

    Args:
        pixels: uint8 [B, C, H, W].
        policy: key of AugmentConfig.policy.

    Returns:
        uint8 [B, C, H, W].
    """
    # torchvision takes seconds to import.
    from torchvision.transforms import v2

    change = {
        "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET),
        "autoaugment_cifar10": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        "randaugment": v2.RandAugment,
        "trivialaugment": v2.TrivialAugmentWide,
    }[policy]()
    return _each(pixels, change)


def augment(x: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Random flip, rotation, scale and shift of every image of a batch.

    With all settings off `x` itself comes back and nothing is drawn. What moves in from
    outside repeats the border pixels.

    Args:
        x: float [B, C, H, W].
        config: the widest change on either side; each image draws its own, uniformly.
        generator: on the CPU, so that every device sees the same draws.

    Returns:
        float [B, C, H, W].
    """
    return augment_as(x, config, draw_changes(len(x), config, generator))


def draw_changes(count: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """What `augment_as` takes for so many images: float [5, count], uniform from 0 to 1."""
    draws = torch.full((5, count), 0.5)
    if config.flip:
        draws[0] = torch.rand(count, generator=generator)
    if not config.shift == config.rotate_deg == config.scale == 0:
        draws[1:] = torch.rand((4, count), generator=generator)
    return draws


def masks_as(masks: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Masks (uint8 [B, H, W]) changed as `augment_as` changes their images.

    Every pixel is that of the nearest of before.
    """
    moved = augment_as(masks[:, None].float(), config, draws, "nearest")
    return moved[:, 0].to(torch.uint8)


def augment_as(x: Tensor, config: AugmentConfig, draws: Tensor, mode: str = "bilinear") -> Tensor:
    """Every image x (float [B, C, H, W]) changed as its draws (float [5, B]) say."""
    if config.flip:
        flipped = draws[0] < 0.5
        x = torch.where(flipped.to(x.device)[:, None, None, None], x.flip(-1), x)
    if config.shift == config.rotate_deg == config.scale == 0:
        return x
    draws = draws[1:] * 2 - 1
    if config.rotate_deg == config.scale == 0:
        sides = torch.tensor([[x.shape[3]], [x.shape[2]]])
        return _shifted(x, (draws[2:] * config.shift * sides).round().to(torch.int64))
    angle = draws[0] * math.radians(config.rotate_deg)
    # The grid runs from output to input: enlarging by s samples a region 1 / s as wide.
    zoom = 1 / (1 + draws[1] * config.scale)
    # The grid's unit is half a side, and not the same along rows and columns.
    shift_x, shift_y = draws[2:] * config.shift * 2
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    aspect = x.shape[-1] / x.shape[-2]
    rows = (
        torch.stack((cos, -sin / aspect, shift_x), dim=1),
        torch.stack((sin * aspect, cos, shift_y), dim=1),
    )
    theta = torch.stack(rows, dim=1).to(x.device, x.dtype)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode, padding_mode="border", align_corners=False)


def _shifted(x: Tensor, pixels: Tensor) -> Tensor:
    """Every image x (float [B, C, H, W]) taken from so many pixels (int64 [2, B]) right and down.

    Images of the test sets are not resampled, so those of the training are not either: at 32 x 32
    a shift by half a pixel blurs all that is small.
    """
    columns, rows = (
        (moved[:, None] + torch.arange(side, device=x.device)).clamp(0, side - 1)
        for moved, side in zip(pixels.to(x.device), (x.shape[3], x.shape[2]), strict=True)
    )
    images = torch.arange(len(x), device=x.device)[:, None, None]
    return x[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
