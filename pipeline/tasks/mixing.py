"""Images of a batch mixed with each other, and their labels with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.recipe.training import TrainConfig

if TYPE_CHECKING:
    from pipeline.tasks.task import Mix


def mixer(config: TrainConfig, outputs: int) -> Mix | None:
    """How the images of a batch are mixed; None where they are not.

    Targets then are the shares of the classes (batch, classes).

    mixup adds two images by weights (Zhang et al. 2018, "mixup: Beyond Empirical Risk
    Minimization"); cutmix puts a part of one into the other (Yun et al. 2019, "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features"). Where both are
    asked for, every batch takes one of them. They draw from torch's own generator.
    """
    if not config.mixup and not config.cutmix:
        return None
    # torchvision takes seconds to import.
    from torchvision.transforms import v2

    kinds = [
        kind(alpha=alpha, num_classes=outputs)
        for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        if alpha
    ]
    found: Mix = kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)
    return found
