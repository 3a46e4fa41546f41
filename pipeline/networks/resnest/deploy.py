"""Deploy form: the same function in the operations phones run fastest.

Each rewrite is exact in real arithmetic:

- softmax over two splits is a sigmoid of the difference of the logits, and the difference of two
  linear maps is one linear map: `a0 = sigmoid((W0 - W1) z + (b0 - b1))`, `a1 = 1 - a0`. Half of
  fc2 goes. The complement is a depthwise convolution with weight -1 and bias 1, since ONNX
  Runtime has no integer subtraction.
- for more splits, one convolution gives the logits of all of them, those of a channel side by
  side, so that softmax runs over the last axis and nothing is concatenated or transposed.
- an average pool is a depthwise convolution with constant weights, which every runtime has in
  int8 (XNNPACK has no int8 average pool).
- the classifier is a 1x1 convolution, so that the flatten comes last and moves ten numbers.
- where camera pixels come in, normalisation is a depthwise 1x1 convolution with constant weights.
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


def _attention_logits(fc2: nn.ModuleList) -> nn.Module:
    """What the deploy form puts in place of `fc2`, for any radix."""
    if len(fc2) == 1:
        return copy.deepcopy(fc2[0])
    return _gate(fc2) if len(fc2) == 2 else _joined(fc2)


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
    """A whole ResNeSt in deploy form: (batch, 3, side, side) to (batch, num_classes).

    Its images are normalised, or pixel values 0..255 where it is given the normalisation.
    """

    def __init__(self, model: ResNeSt, normalization: Normalization | None = None) -> None:
        super().__init__()
        self.takes_pixels = normalization is not None
        self.normalize = normalize_conv(normalization) if normalization else nn.Identity()
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
        features = self.blocks(self.stem(self.normalize(x)))
        return self.fc(global_average(features)).flatten(1)  # type: ignore[no-any-return]


def deploy_form(branched: ResNeSt, normalization: Normalization | None = None) -> DeployNet:
    """Return the deploy form of a network whose blocks are in branch form.

    With a normalisation it takes pixel values 0..255 in place of normalised images.
    """
    deploy = DeployNet(branched, normalization)
    # The new convolutions start on the CPU; the rest may not.
    return deploy.to(next(branched.parameters())).train(branched.training)


def branch_names(model: ResNeSt) -> dict[str, str]:
    """Names of blocks and layers of a network in branch form, by their names in deploy form.

    `blocks.3` is `layer2.0` in a network of three blocks in its first stage, `stem.0.6` is
    `conv1.6`, or `stem.0` the `conv1` of a small stem; what stands inside a block has the same
    name in both forms.
    """
    blocks = [
        f"layer{stage}.{position}"
        for stage, blocks in enumerate(model.stages(), start=1)
        for position in range(len(blocks))
    ]
    stem = {"stem.0": "conv1"}
    if isinstance(model.conv1, nn.Sequential):
        stem = {f"stem.0.{index}": f"conv1.{index}" for index in range(len(model.conv1))}
    return stem | {f"blocks.{index}": name for index, name in enumerate(blocks)} | {"fc": "fc"}


def branch_name(names: dict[str, str], module: str) -> str:
    """The name in branch form of a module in deploy form; that of its block where it has none.

    Args:
        names: from `branch_names`.
        module: as in `named_modules` of the deploy form.
    """
    parts = module.split(".")
    if parts[0] != "blocks":
        return names.get(module, module)
    inside = ".".join(parts[2:])
    block = names[".".join(parts[:2])]
    # The first split's logits, or those of all, come of the one convolution that is left.
    inside = "fc2.0" if inside == "fc2" else inside
    return f"{block}.{inside}" if inside else block
