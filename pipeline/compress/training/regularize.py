"""What keeps a training from learning its images by heart, and averages its last steps."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.base.errors import InputError
from pipeline.networks.family import AnyFamily
from pipeline.recipe.training import TrainConfig


def drop_while_training(family: AnyFamily, model: nn.Module, config: TrainConfig) -> None:
    """Have a network drop features while it is trained, as its family does; in place.

    Raises:
        InputError: the recipe asks for it, and the family cannot.
    """
    if family.drop is not None:
        family.drop(model, config)
        return
    for name in ("dropblock", "dropout"):
        if getattr(config, name):
            raise InputError(
                f"train.{name}: got {getattr(config, name):g}; this network has no layers that "
                "drop; set it to 0"
            )


def average_of(model: nn.Module, config: TrainConfig) -> AveragedModel | None:
    """A copy of a network that follows it slowly; None where the recipe asks for none.

    After every step each weight and statistic becomes `ema` of what it was and the rest of the
    network's (Polyak and Juditsky 1992).
    """
    if config.ema is None:
        return None
    average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
