"""What keeps a training from learning its images by heart, and averages its last steps."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.networks.resnest.network import DropBlock, ResNeSt
from pipeline.recipe.training import TrainConfig

_DROPPING_STAGES = 2


def drop_while_training(model: ResNeSt, config: TrainConfig) -> None:
    """Have a network drop squares in its last two stages, and features before its classifier.

    As in the ResNeSt paper (Zhang et al. 2020, section 5.1), with DropBlock (Ghiasi et al. 2018).
    Nothing is dropped in evaluation mode.
    """
    for stage in model.stages()[-_DROPPING_STAGES:]:
        for module in stage.modules():
            if isinstance(module, DropBlock):
                module.probability = config.dropblock
    model.drop.p = config.dropout


def average_of(model: nn.Module, config: TrainConfig) -> AveragedModel | None:
    """A copy of a network that follows it slowly; None where the recipe asks for none.

    After every step each weight and statistic becomes `ema` of what it was and the rest of the
    network's (Polyak and Juditsky 1992).
    """
    if config.ema is None:
        return None
    average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
