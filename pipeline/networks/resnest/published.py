"""ResNeSt as the paper's code and timm's compute it.

`network.py` keeps every tensor 4-D and picks the channels of a split by an index, which exporters
turn into GatherND. Whoever exports the published code gets softmax over a reshaped, transposed
tensor instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.codes import PAPER, TIMM
from pipeline.networks.resnest.network import Block, ResNeSt, SplitAttention


class ResearchAttention(nn.Module):
    """Split attention as in the paper's code, with the weights of ours."""

    def __init__(self, ours: SplitAttention) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same channels, spatially strided."""
        ours = self.ours
        splits = torch.split(ours.act0(ours.bn0(ours.conv(x))), ours.channels, dim=1)
        pooled = functional.adaptive_avg_pool2d(_sum(splits), 1)
        logits = ours.fc2(torch.relu(ours.bn1(ours.fc1(pooled))))
        return _sum([w * split for w, split in zip(self._weights(logits), splits, strict=True)])

    def _weights(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The weight (batch, channels, 1, 1) of every split, from logits of all splits."""
        ours, batch = self.ours, logits.shape[0]
        if ours.radix == 1:
            return (torch.sigmoid(logits),)
        grouped = logits.view(batch, ours.cardinality, ours.radix, -1).transpose(1, 2)
        weights = torch.softmax(grouped, dim=1).reshape(batch, -1)
        return torch.split(weights.view(batch, -1, 1, 1), ours.channels, dim=1)


class TimmAttention(ResearchAttention):
    """Split attention as timm computes it: splits and their weights as one tensor of 5 axes."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same channels, spatially strided."""
        ours = self.ours
        x = ours.act0(ours.bn0(ours.conv(x)))
        splits = x.reshape(x.shape[0], ours.radix, ours.channels, *x.shape[2:])
        pooled = splits.sum(dim=1).mean((2, 3), keepdim=True)
        weights = self._weights(ours.fc2(torch.relu(ours.bn1(ours.fc1(pooled)))))
        stacked = torch.cat(weights, dim=1) if len(weights) > 1 else weights[0]
        return (splits * stacked.reshape(x.shape[0], ours.radix, ours.channels, 1, 1)).sum(dim=1)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Of at least one tensor."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def research_form(
    model: ResNeSt, attention: type[ResearchAttention] = ResearchAttention
) -> ResNeSt:
    """A copy of `model` in evaluation mode that computes attention as the research code does."""
    copied = copy.deepcopy(model).eval()
    for block in list(copied.modules()):
        if isinstance(block, Block):
            block.add_module("conv2", attention(block.conv2))
    return copied


PUBLISHED: dict[str, Callable[[ResNeSt], ResNeSt]] = {
    PAPER: research_form,
    TIMM: partial(research_form, attention=TimmAttention),
}
"""By the name of the code."""
