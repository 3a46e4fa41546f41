"""Deploy form: the same function in the operations phones run fastest.

Every layer keeps the name that it has in branch form, and every layer outside the splits the one
of the float network: `conv1.0`, `layer2.0.conv3`, `fc`. A rewrite puts one module in another's
place, and what is new (`normalize`, `complement`) has a name of its own. Each rewrite is exact in
real arithmetic, before -> after:

- the attention of two splits, where softmax over two is a sigmoid of the difference, and the
  difference of two linear maps is one linear map:
    softmax(fc2.0(z), fc2.1(z))
    -> a = sigmoid(fc2.0'(z)), complement(a); fc2.0' = fc2.0 - fc2.1, complement(a) = 1 - a
  Half of fc2 goes. The complement is a depthwise convolution with weight -1 and bias 1, since
  ONNX Runtime has no integer subtraction.
- the attention of more splits, so that softmax runs over the last axis and nothing is
  concatenated or transposed:
    softmax(fc2.0(z), fc2.1(z), fc2.2(z), ...)
    -> softmax(fc2.0'(z)) ; fc2.0' has the outputs of all, those of a channel side by side
- the average pools, for XNNPACK has no int8 average pool:
    avg_pool(x)
    -> conv(x) ; depthwise, its weights constants, which every runtime has in int8
- the classifier, so that the flatten comes last and moves ten numbers:
    linear(flatten(mean(x)))
    -> flatten(conv(mean(x))) ; 1x1
- the input, where camera pixels come in:
    conv1((pixels / 255 - mean) / std)
    -> conv1(normalize(pixels)) ; a depthwise 1x1 convolution with constant weights
  It stays one of its own: folded into the first convolution it would change what that one's zero
  padding stands for.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pipeline.networks.resnest.branches import BranchedBlock
from pipeline.networks.resnest.network import ResNeSt, global_average
from pipeline.networks.rewrites import Normalization, average_conv, complement_conv, normalize_conv


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


def _joined(fc2: nn.ModuleList) -> nn.Conv2d:
    """One convolution with the logits of all of `fc2`, those of one channel side by side."""
    convs = [conv for conv in fc2 if isinstance(conv, nn.Conv2d)]
    first, radix = convs[0], len(convs)
    joined = nn.Conv2d(
        first.in_channels,
        first.out_channels * radix,
        1,
        groups=first.groups,
        device=first.weight.device,
    )
    with torch.no_grad():
        for r, conv in enumerate(convs):
            assert joined.bias is not None
            assert conv.bias is not None
            joined.weight[r::radix] = conv.weight
            joined.bias[r::radix] = conv.bias
    return joined


def _attention_logits(fc2: nn.ModuleList) -> nn.Sequential:
    """What the deploy form puts in place of `fc2`, for any radix: `fc2.0` alone.

    It gives the first split's logits, or those of all.
    """
    if len(fc2) == 1:
        return nn.Sequential(copy.deepcopy(fc2[0]))
    return nn.Sequential(_gate(fc2) if len(fc2) == 2 else _joined(fc2))


def softmax_attention(splits: list[Tensor], logits: Tensor) -> Tensor:
    """Sum of the splits, weighted by a softmax over them.

    The softmax runs over the last axis and every reshape moves nothing, so no runtime has to
    change a layout.

    Args:
        splits: radix tensors (batch, channels, height, width).
        logits: (batch, channels * radix, 1, 1), those of one channel side by side.
    """
    radix, width = len(splits), logits.shape[1]
    weights = torch.softmax(logits.reshape(-1, width // radix, radix), dim=2)
    weights = weights.reshape(-1, width, 1, 1)
    # Not weights[:, r::radix]: indexing also slices the batch, an operation that does nothing.
    shares = [torch.ops.aten.slice.Tensor(weights, 1, r, width, radix) for r in range(radix)]
    total: Tensor = splits[0] * shares[0]
    for split, share in zip(splits[1:], shares[1:], strict=True):
        total = total + split * share
    return total


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
        self.fc2 = _attention_logits(block.fc2)
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
        logits = self.fc2(inner)
        if len(splits) > 2:
            return softmax_attention(splits, logits)
        share = torch.sigmoid(logits)
        if len(splits) == 1:
            return splits[0] * share
        rest: Tensor = self.complement(share)
        return splits[0] * share + splits[1] * rest

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, height, width) to (batch, out, height / stride, width / stride)."""
        y = self.avd_last(self.attend([branch(x) for branch in self.branches]))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class DeployNet(nn.Module):
    """A whole ResNeSt in deploy form: (batch, channels, height, width) to (batch, num_classes).

    Its images are normalised, or pixel values 0..255 where it is given the normalisation.
    """

    def __init__(self, model: ResNeSt, normalization: Normalization | None = None) -> None:
        super().__init__()
        self.normalize = normalize_conv(normalization) if normalization else nn.Identity()
        self.conv1, self.bn1 = copy.deepcopy(model.conv1), copy.deepcopy(model.bn1)
        self.maxpool = copy.deepcopy(model.maxpool)
        self._stages = model.stage_names()
        for name in self._stages:
            blocks = model.get_submodule(name)
            self.add_module(name, nn.Sequential(*(DeployBlock(block) for block in blocks)))  # type: ignore[attr-defined]
        linear = model.fc
        assert isinstance(linear, nn.Linear)
        self.fc = nn.Conv2d(linear.in_features, linear.out_features, 1)
        with torch.no_grad():
            self.fc.weight.copy_(linear.weight[:, :, None, None])
            self.fc.bias.copy_(linear.bias)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(self.normalize(x)))))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        return self.fc(global_average(x)).flatten(1)  # type: ignore[no-any-return]


def deploy_form(branched: ResNeSt, normalization: Normalization | None = None) -> DeployNet:
    """Return the deploy form of a network whose blocks are in branch form.

    With a normalisation it takes pixel values 0..255 in place of normalised images.
    """
    deploy = DeployNet(branched, normalization)
    # The new convolutions start on the CPU; the rest may not.
    return deploy.to(next(branched.parameters())).train(branched.training)


def with_deploy_blocks(branched: ResNeSt) -> ResNeSt:
    """A copy of a network in branch form with every block in deploy form, and nothing else."""
    deploy = copy.deepcopy(branched)
    for stage in deploy.stages():
        for index, block in enumerate(stage):
            if isinstance(block, BranchedBlock):
                stage[index] = DeployBlock(block)
    return deploy.to(next(branched.parameters())).train(branched.training)
