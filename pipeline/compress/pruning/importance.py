"""How much every channel matters, by torch-pruning's criteria.

| criterion | importance of a channel | source |
| --- | --- | --- |
| l1, l2 | norm of all weights that make or read it, as a share of its group's mean | Li et al. 2017, https://arxiv.org/abs/1608.08710; over groups: Fang et al. 2023, https://arxiv.org/abs/2301.12900 |
| bn_scale | its batch normalisations' factors, likewise | Liu et al. 2017, https://arxiv.org/abs/1708.06519 |
| taylor | sum of abs(weight x gradient) | Molchanov et al. 2019, https://arxiv.org/abs/1906.10771 |
| fisher | sum of weight^2 x mean squared gradient: optimal brain damage with the diagonal of the Fisher information in place of the Hessian | LeCun et al. 1989; Theis et al. 2018, https://arxiv.org/abs/1801.05787 |

Norms say nothing of a channel beside those of other groups, so they are shares of the group's
mean; the last two estimate the loss itself and compare as they are. Channels without a batch
normalisation have no factors: by bn_scale they are judged by l1, a share of the mean as well.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from pipeline.compress.pruning.followed import Followed
from pipeline.compress.pruning.groups import Group
from pipeline.compress.pruning.kept import BY_NORM

Scores = dict[str, Tensor]
"""Importance of the channels of one cardinal group, float64, by the name of the group of channels.

All cardinal groups lose the same channels, so one number stands for a channel of each.
"""

JudgedImages = Callable[[], Iterable[tuple[Tensor, Callable[[Tensor], Tensor]]]]
"""Gives batches of normalised images (batch, 3, side, side), and the loss of answers to them."""

_CRITERIA: dict[str, Callable[[], Any]] = {
    "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "bn_scale": lambda: tp.importance.BNScaleImportance(),
    "taylor": lambda: tp.importance.GroupTaylorImportance("sum", normalizer=None),
    "fisher": lambda: tp.importance.GroupHessianImportance("sum", normalizer=None),
}
NEED_IMAGES = frozenset({"taylor", "fisher"})
"""Criteria that look at gradients."""


def scores(found: Followed, criterion: str, images: JudgedImages) -> Scores:
    """How much every channel of every group matters.

    Args:
        found: the channels of a network.
        criterion: l1, l2, bn_scale, taylor or fisher.
        images: called where the criterion looks at gradients; the smaller its batches, the nearer
            fisher comes to gradients of single images.
    """
    if criterion in NEED_IMAGES:
        _take_gradients(found.judged, images(), squared=criterion == "fisher")
    by_norm = judged_by_norm(found.groups, criterion)
    return {
        group.name: _of_one_part(
            group, _importance(BY_NORM if group.name in by_norm else criterion, found, group)
        )
        for group in found.groups
    }


def judged_by_norm(groups: Sequence[Group], criterion: str) -> frozenset[str]:
    """Groups that `BY_NORM` judges in place of a criterion that says nothing of them, by name."""
    if criterion != "bn_scale":
        return frozenset()
    return frozenset(group.name for group in groups if not group.norms)


def _importance(criterion: str, found: Followed, group: Group) -> Tensor:
    """Of the channels of a group, by torch-pruning."""
    importance = _CRITERIA[criterion]()
    reduce = importance._reduce
    # It takes the channels of the first layer for all; a batch normalisation may have some of them.
    none = torch.zeros(group.channels, device=next(found.judged.parameters()).device)
    importance._reduce = lambda values, channels: reduce(
        [none, *values], [range(group.channels), *channels]
    )
    judged: Tensor = importance(found.records[group.name])
    return judged


def _of_one_part(group: Group, importance: Tensor) -> Tensor:
    return importance.detach().cpu().double().reshape(group.parts, -1).mean(0)


def _take_gradients(
    model: nn.Module, images: Iterable[tuple[Tensor, Callable[[Tensor], Tensor]]], *, squared: bool
) -> None:
    """Leave in `grad` of every parameter the mean over batches of its gradient, or of its square.

    Summed up here: torch-pruning's own sum keeps the last batch only.
    """
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    count = 0
    for x, loss_of in images:
        place = parameters[0].device
        loss = loss_of(model(x.to(place)))
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient.square() if squared else gradient
        count += 1
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total / max(count, 1)
