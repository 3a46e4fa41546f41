"""Batches of a dataset, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.recipe.training import AugmentConfig
from pipeline.tasks.images.augment import (
    augment_as,
    by_policy,
    draw_changes,
    masks_as,
    random_parts,
    random_parts_of_both,
)
from pipeline.tasks.images.boxes import are_boxes, moved
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images, is_mask, normalize
from pipeline.tasks.images.workers import pixels_in_turn


@dataclass(frozen=True, kw_only=True)
class ProcessShare:
    """Some of the nearly equal parts of every batch.

    Attributes:
        parts: of a batch, all together.
        first: of those that are meant.
        number: of those that are meant.
    """

    parts: int = 1
    first: int = 0
    number: int = 1

    def of(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The parts of the rows of a batch."""
        return rows.tensor_split(self.parts)[self.first : self.first + self.number]


WHOLE = ProcessShare()


def batches(
    images: Images,
    batch_size: int,
    dataset: Dataset,
    *,
    augment_config: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
    order: Tensor | None = None,
    share: ProcessShare = WHOLE,
    place: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of normalised batches: float32 [B, C, H, W] and labels [B, ...].

    Labels that are masks or boxes move with their images.

    Without a generator the images come in their own order, for evaluation. With one (on the
    CPU) they are shuffled, for training; a last batch of a single image (of less than two in
    every part) is then left out, because batch norm needs two.

    Args:
        images: a set of `dataset`.
        batch_size: images per batch; the last batch may be shorter.
        dataset: gives mean and standard deviation.
        augment_config: its crop and policy are applied to the pixels, the rest after
            normalisation; needs a generator.
        generator: source of the order and of the augmentation.
        order: int64 [M], which images come, and in what order; drawn where left out.
        share: the parts of every batch that come, one after the other, in place of all of it.
            Whoever else takes another share draws the same numbers from an equal generator.
        place: where the images come to be; they go there as bytes, and all but `crop` and `policy`
            is done there. Labels stay on the CPU.

    Raises:
        ValueError: `augment_config` without `generator`, or a batch size below 1.
    """
    if augment_config is not None and generator is None:
        raise ValueError("augment_config needs a generator; pass both or neither")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; must be >= 1")
    place = place or torch.device("cpu")
    return _batches(images, batch_size, dataset, augment_config, generator, order, share, place)


def _batches(
    images: Images,
    batch_size: int,
    dataset: Dataset,
    augment_config: AugmentConfig | None,
    generator: torch.Generator | None,
    order: Tensor | None,
    share: ProcessShare,
    place: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    shuffled = generator is not None
    if order is None:
        count = len(images)
        order = torch.randperm(count, generator=generator) if shuffled else torch.arange(count)
    fewest = 2 * share.parts if shuffled else 1
    taken = [part for part in torch.split(order, batch_size) if len(part) >= fewest]
    crop = None if augment_config is None else augment_config.crop
    wanted = [part.numpy() for indices in taken for part in share.of(indices)]
    decoded = pixels_in_turn(images, wanted, margin=crop is not None)
    for indices in taken:
        changes = None
        if augment_config is not None and generator is not None:
            changes = draw_changes(len(indices), augment_config, generator)
        for part in share.of(torch.arange(len(indices))):
            pixels, targets = next(decoded), images.labels[indices[part]]
            masked = is_mask(targets)
            if crop is not None and masked:
                both = pixels, targets
                pixels, targets = random_parts_of_both(
                    *both, crop, images.shape, images.interpolation
                )
            elif crop is not None:
                pixels = random_parts(pixels, crop, images.shape, images.interpolation)
            if augment_config is not None and augment_config.policy is not None:
                pixels = by_policy(pixels, augment_config.policy)
            x = normalize(pixels.to(place), dataset.mean, dataset.std)
            if augment_config is not None and changes is not None:
                x = augment_as(x, augment_config, changes[:, part])
                if masked:
                    targets = masks_as(targets, augment_config, changes[:, part])
                elif are_boxes(targets):
                    targets = moved(targets, augment_config, changes[:, part])
            yield x, targets
