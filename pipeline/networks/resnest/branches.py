"""Branch form: every radix split as its own chain of plain convolutions.

The radix-wide grouped convolution of split attention ties channels of different splits in a way
that pruning's dependency graphs cannot follow: a channel removed in one split must go in all.
Written as parallel branches that are summed, the tie is an ordinary element-wise one. The weights
are slices of the original's, so both forms compute the same function. For two splits:

    before: conv1 -> bn1 -> relu -> conv2.conv (radix x groups) -> bn0 -> relu -> attention
    after:  branches.0.(0 .. 6), branches.1.(0 .. 6) -> attention; each has its split's weights

Outside of what is split, every layer keeps the module path that it has in the float network; the
deploy form keeps all paths of this one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.networks.resnest.network import Block, ResNeSt, global_average, split_attention


def _conv_slice(conv: nn.Conv2d, rows: Tensor, groups: int) -> nn.Conv2d:
    """A convolution of some output channels of `conv`, its input cut to what they read."""
    weight = conv.weight.detach()[rows]
    sliced = nn.Conv2d(
        weight.shape[1] * groups,
        len(rows),
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        groups=groups,
        bias=conv.bias is not None,
    )
    sliced.weight = nn.Parameter(weight.clone())
    if conv.bias is not None:
        sliced.bias = nn.Parameter(conv.bias.detach()[rows].clone())
    return sliced


def _norm_slice(norm: nn.BatchNorm2d, rows: Tensor) -> nn.BatchNorm2d:
    """The batch normalisation of some channels of `norm`, running statistics included."""
    sliced = nn.BatchNorm2d(len(rows), eps=norm.eps, momentum=norm.momentum)
    state = {k: v if v.dim() == 0 else v[rows] for k, v in norm.state_dict().items()}
    sliced.load_state_dict(state)
    return sliced.to(norm.running_mean)


class BranchedBlock(nn.Module):
    """A residual block whose splits are parallel branches; equal to the `Block` it is made of."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        attention = block.conv2
        radix, cardinality = attention.radix, attention.cardinality
        width, inputs = attention.channels, attention.channels // radix
        branches: list[nn.Module] = []
        for r in range(radix):
            narrow = torch.arange(r * inputs, (r + 1) * inputs)
            wide = torch.arange(r * width, (r + 1) * width)
            branches.append(
                nn.Sequential(
                    _conv_slice(block.conv1, narrow, 1),
                    _norm_slice(block.bn1, narrow),
                    nn.ReLU(),
                    copy.deepcopy(block.avd_first),
                    _conv_slice(attention.conv, wide, cardinality),
                    _norm_slice(attention.bn0, wide),
                    copy.deepcopy(attention.act0),
                )
            )
        self.branches = nn.ModuleList(branches)
        self.fc1 = copy.deepcopy(attention.fc1)
        self.bn1 = copy.deepcopy(attention.bn1)
        self.fc2 = nn.ModuleList(
            _conv_slice(attention.fc2, attention.logit_channels(r), cardinality)
            for r in range(radix)
        )
        self.avd_last = copy.deepcopy(block.avd_last)
        self.conv3 = copy.deepcopy(block.conv3)
        self.bn3 = copy.deepcopy(block.bn3)
        self.downsample = copy.deepcopy(block.downsample)

    def attend(self, splits: list[Tensor]) -> Tensor:
        """The attention-weighted sum of the branches' outputs."""
        pooled = global_average(splits[0])
        for split in splits[1:]:
            pooled = pooled + global_average(split)
        inner = torch.relu(self.bn1(self.fc1(pooled)))
        return split_attention(splits, [fc(inner) for fc in self.fc2])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out, height / stride, width / stride)."""
        y = self.avd_last(self.attend([branch(x) for branch in self.branches]))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def branch_form(model: ResNeSt) -> ResNeSt:
    """Return a copy of `model` with every block in branch form. DropBlock is left out."""
    branched = copy.deepcopy(model)
    for stage in branched.stages():
        for index, block in enumerate(stage):
            if isinstance(block, Block):
                stage[index] = BranchedBlock(block)
    return branched.train(model.training)
