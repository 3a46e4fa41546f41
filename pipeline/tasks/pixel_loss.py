"""What a training of pixels minimises: cross entropy without void, and the Dice loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe.task import PixelLossConfig
from pipeline.recipe.values import BALANCED
from pipeline.tasks.class_maps import at_input, pixels_of, refuse_other_places
from pipeline.tasks.images.preparation import VOID

_MASKS_AT_A_TIME = 256


def balanced(masks: Tensor) -> Tensor:
    """A weight for every class by median frequency balancing: float32 [classes that there are].

    The median of all frequencies by a class's own, its share of the pixels of the images that it
    is in (Eigen and Fergus 2015, https://arxiv.org/abs/1411.4734, section 6.3.2). A class that no
    pixel has counts as the median.

    Args:
        masks: uint8 [N, H, W].
    """
    found, seen = torch.zeros(VOID, dtype=torch.float64), torch.zeros(VOID, dtype=torch.float64)
    for part in torch.split(masks, _MASKS_AT_A_TIME):
        counts = pixels_of(part, VOID).double()
        found += counts.sum(0)
        seen += ((counts > 0) * counts.sum(1, keepdim=True)).sum(0)
    known = found > 0
    shares = found[known] / seen[known]
    weights = torch.ones(VOID, dtype=torch.float32)
    if known.any():
        weights[known] = (shares.median() / shares).float()
    return weights


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - 2 |A and B| / (|A| + |B|), the mean over the classes that a batch has.

    A are the probabilities of a class, B its pixels, both over the whole batch (Milletari et al.
    2016, "V-Net", https://arxiv.org/abs/1606.04797, section 3, with sums in place of sums of
    squares).

    Args:
        logits: [B, classes, H, W].
        masks: int64 [B, H, W]; void pixels are left out.
    """
    known = (masks != VOID)[:, None]
    targets = F.one_hot(masks.where(known[:, 0], 0), logits.shape[1]).movedim(-1, 1) * known
    probabilities = logits.softmax(1) * known
    over = (0, 2, 3)
    pixels = targets.sum(over)
    both = (probabilities * targets).sum(over)
    dice = 2 * both / (probabilities.sum(over) + pixels).clamp(min=1e-9)
    there = pixels > 0
    return (1 - dice)[there].mean() if there.any() else logits.sum() * 0


class PixelLoss(nn.Module):
    """The loss of answers [B, classes, h, w] with masks uint8 [B, H, W]."""

    weights: Tensor | None

    def __init__(
        self, config: PixelLossConfig, stride: int, smoothing: float, masks: Tensor | None
    ) -> None:
        """Take what a recipe says.

        Args:
            config: class weights, and the share of Dice.
            stride: of the answers.
            smoothing: share of the target that is spread over all classes.
            masks: of all training images; without them `balanced` weights are all one.
        """
        super().__init__()
        self.dice, self.stride, self.smoothing = config.dice, stride, smoothing
        weights = None
        if config.class_weights == BALANCED:
            weights = None if masks is None or len(masks) == 0 else balanced(masks)
        elif config.class_weights is not None:
            weights = torch.tensor(config.class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights)

    def forward(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The mean over the pixels of a batch that have a class; 0 where none has.

        Raises:
            InputError: answers are for other places than targets have.
        """
        refuse_other_places(answers, targets, self.stride)
        logits, masks = at_input(answers, self.stride), targets.long()
        weights = self.weights
        if weights is not None:
            weights = weights[: logits.shape[1]].to(logits.device)
        known = masks != VOID
        if weights is not None:
            known = known & (weights[masks.where(known, 0)] > 0)
        if not known.any():
            return logits.sum() * 0
        cross = F.cross_entropy(
            logits, masks, weights, ignore_index=VOID, label_smoothing=self.smoothing
        )
        if self.dice == 0:
            return cross
        return (1 - self.dice) * cross + self.dice * dice_loss(logits, masks)
