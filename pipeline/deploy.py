"""Deploy form: the same function in the operations phones run fastest.

Each rewrite is exact in real arithmetic:

- softmax over two splits is a sigmoid of the difference of the logits, and the difference of two
  linear maps is one linear map: `a0 = sigmoid((W0 - W1) z + (b0 - b1))`, `a1 = 1 - a0`. Half of
  fc2 goes. The complement is a depthwise convolution with weight -1 and bias 1, since ONNX
  Runtime has no integer subtraction.
- an average pool is a depthwise convolution with constant weights, which every runtime has in
  int8 (XNNPACK has no int8 average pool).
- the classifier is a 1x1 convolution, so that the flatten comes last and moves ten numbers.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.models.branches import BranchedBlock
from pipeline.models.resnest import ResNeSt, global_average, split_attention


def average_conv(pool: nn.AvgPool2d, channels: int) -> nn.Conv2d:
    """The depthwise convolution equal to `pool`; its weights are constants, not parameters.

    Padding must count (`count_include_pad`) or be absent, as it is in ResNeSt for sides that are
    a multiple of 32.
    """
    kernel, padding = int(pool.kernel_size), int(pool.padding)  # type: ignore[arg-type]
    conv = nn.Conv2d(
        channels,
        channels,
        kernel,
        int(pool.stride),  # type: ignore[arg-type]
        padding,
        groups=channels,
        bias=False,
    )
    nn.init.constant_(conv.weight, 1.0 / kernel**2)
    conv.weight.requires_grad_(False)
    return conv


def _pool(module: nn.Module, channels: int) -> nn.Module:
    return average_conv(module, channels) if isinstance(module, nn.AvgPool2d) else module


def _gate(fc2: nn.ModuleList) -> nn.Conv2d:
    """One convolution whose sigmoid is the first of the softmax over the two of `fc2`."""
    first, second = fc2
    gate = copy.deepcopy(first)
    assert isinstance(gate, nn.Conv2d)
    with torch.no_grad():
        gate.weight -= second.weight  # type: ignore[arg-type]
        gate.bias -= second.bias  # type: ignore[operator]
    return gate


def complement_conv(channels: int) -> nn.Conv2d:
    """`1 - x` as a depthwise 1x1 convolution; its weights are constants, not parameters."""
    conv = nn.Conv2d(channels, channels, 1, groups=channels)
    conv.requires_grad_(False)
    nn.init.constant_(conv.weight, -1.0)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, 1.0)
    return conv


class DeployBlock(nn.Module):
    """A branched block in deploy form; takes over the modules of the block it is made of."""

    def __init__(self, block: BranchedBlock) -> None:
        super().__init__()
        branches = copy.deepcopy(block.branches)
        for branch in branches:
            branch[3] = _pool(branch[3], branch[0].out_channels)  # type: ignore[index, operator]
        self.branches = branches
        self.fc1, self.bn1 = copy.deepcopy(block.fc1), copy.deepcopy(block.bn1)
        last = branches[0][4]  # type: ignore[index]
        two = len(block.fc2) == 2
        self.fc2 = nn.ModuleList([_gate(block.fc2)]) if two else copy.deepcopy(block.fc2)
        self.complement = complement_conv(last.out_channels) if two else nn.Identity()
        self.avd_last = _pool(block.avd_last, last.out_channels)
        self.conv3, self.bn3 = copy.deepcopy(block.conv3), copy.deepcopy(block.bn3)
        self.downsample = copy.deepcopy(block.downsample)
        if isinstance(self.downsample, nn.Sequential):
            self.downsample[0] = _pool(self.downsample[0], self.downsample[1].in_channels)  # type: ignore[arg-type]

    def attend(self, splits: list[Tensor]) -> Tensor:
        """The attention-weighted sum of the branches' outputs."""
        pooled = global_average(splits[0])
        for split in splits[1:]:
            pooled = pooled + global_average(split)
        inner = torch.relu(self.bn1(self.fc1(pooled)))
        logits = [fc(inner) for fc in self.fc2]
        if len(splits) > 2:
            return split_attention(splits, logits)
        share = torch.sigmoid(logits[0])
        if len(splits) == 1:
            return splits[0] * share
        rest: Tensor = self.complement(share)
        return splits[0] * share + splits[1] * rest

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out, height / stride, width / stride)."""
        y = self.avd_last(self.attend([branch(x) for branch in self.branches]))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class DeployNet(nn.Module):
    """A whole ResNeSt in deploy form: (batch, 3, side, side) to (batch, num_classes)."""

    def __init__(self, model: ResNeSt) -> None:
        super().__init__()
        self.stem = copy.deepcopy(nn.Sequential(model.conv1, model.bn1, nn.ReLU(), model.maxpool))
        self.blocks = nn.Sequential(
            *(DeployBlock(block) for stage in model.stages() for block in stage)  # type: ignore[arg-type]
        )
        linear = model.fc
        assert isinstance(linear, nn.Linear)
        self.fc = nn.Conv2d(linear.in_features, linear.out_features, 1)
        with torch.no_grad():
            self.fc.weight.copy_(linear.weight[:, :, None, None])
            self.fc.bias.copy_(linear.bias)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes)."""
        return self.fc(global_average(self.blocks(self.stem(x)))).flatten(1)  # type: ignore[no-any-return]


def deploy_form(branched: ResNeSt) -> DeployNet:
    """Return the deploy form of a network whose blocks are in branch form."""
    # The new convolutions start on the CPU; the rest may not.
    return DeployNet(branched).to(next(branched.parameters())).train(branched.training)
