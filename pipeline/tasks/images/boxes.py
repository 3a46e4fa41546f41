"""The objects of images as targets: float32 [N, M, 6], as many rows as the image with most has.

A row is left, top, right and bottom, as shares of the delivered image, the class, and whether the
object is ignored where boxes are judged (a crowd, or one that is hard to see). Rows that an image
has not are of class -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.recipe.training import AugmentConfig

SIDES, CLASS, IGNORED = slice(0, 4), 4, 5
COLUMNS = 6
NONE = -1.0


def are_boxes(labels: Tensor) -> bool:
    """Whether labels of images are their objects."""
    return labels.dim() == 3 and labels.is_floating_point()


def there(targets: Tensor) -> Tensor:
    """Which rows are objects: bool [...] of [..., 6]."""
    return targets[..., CLASS] >= 0


def counted(targets: Tensor) -> Tensor:
    """Which rows are objects that are not ignored."""
    return there(targets) & (targets[..., IGNORED] == 0)


def targets_of(images: Sequence[Tensor]) -> Tensor:
    """Targets of the rows [objects, 6] of every image."""
    most = max((len(rows) for rows in images), default=0)
    targets = torch.zeros(len(images), max(1, most), COLUMNS)
    targets[..., CLASS] = NONE
    for image, rows in enumerate(images):
        targets[image, : len(rows)] = rows
    return targets


def moved(targets: Tensor, config: AugmentConfig, draws: Tensor) -> Tensor:
    """Targets of images that were augmented: mirrored, moved and scaled as `augment_as` does.

    Objects that are moved out go; of those at the border what is left stays.

    Args:
        targets: [B, M, 6].
        config: without a rotation, which boxes do not follow.
        draws: float [5, B], of `draw_changes`.
    """
    found = targets.clone()
    if config.flip:
        flipped = (draws[0] < 0.5)[:, None]
        left, right = found[..., 0].clone(), found[..., 2].clone()
        found[..., 0] = torch.where(flipped, 1 - right, left)
        found[..., 2] = torch.where(flipped, 1 - left, right)
    if config.shift == config.scale == 0:
        return found
    change = draws[1:] * 2 - 1
    grown = (1 + change[1] * config.scale)[:, None, None]
    shift = (change[2:] * config.shift).T[:, None, :]
    for ends in (slice(0, 2), slice(2, 4)):
        # The image's middle stays where it is, and what is shown is taken from `shift` beside it.
        found[..., ends] = ((found[..., ends] - 0.5 - shift) * grown + 0.5).clamp(0, 1)
    gone = (found[..., 2] - found[..., 0] <= 0) | (found[..., 3] - found[..., 1] <= 0)
    found[..., CLASS] = torch.where(gone, NONE, found[..., CLASS])
    return found
