"""The network as the research code computes it, and what torch's own exporters make of it.

`pipeline.models.resnest` keeps every tensor 4-D and picks the channels of a split by an index,
which exporters turn into GatherND. Whoever exports the paper's own code gets softmax over a
reshaped, transposed tensor instead. That is what the peers start from: they are not to pay for how
we write things.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.checkpoints import read_checkpoint, save_checkpoint
from pipeline.networks.resnest.network import Block, ResNeSt, ResNeStConfig, SplitAttention

_SHAPE = "config"


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


def save_network(model: ResNeSt, path: Path) -> None:
    """Write weights and shape of `model` to `path` (.safetensors)."""
    save_checkpoint(model, path, {_SHAPE: json.dumps(asdict(model.config))})


def load_network(path: Path) -> ResNeSt:
    """Read what `save_network` wrote; the network is in evaluation mode."""
    with safe_open(path, "pt") as file:
        shape = json.loads(file.metadata()[_SHAPE])
    model = ResNeSt(ResNeStConfig(**shape | {"layers": tuple(shape["layers"])}))
    model.load_state_dict(read_checkpoint(path))
    return model.eval()


def write_onnx(
    model: ResNeSt,
    side: int,
    path: Path,
    attention: type[ResearchAttention] = ResearchAttention,
) -> None:
    """Write `model` to the ONNX file `path`: what `torch.onnx.export` gives without more ado.

    Args:
        model: in evaluation mode.
        side: of the images, in pixels.
        path: of the file; its input is `image` (1, 3, side, side), its output `logits`.
        attention: whose code the network is exported from.
    """
    torch.onnx.export(
        research_form(model, attention),
        (torch.zeros(1, 3, side, side),),
        path,
        dynamo=True,
        opset_version=21,
        input_names=["image"],
        output_names=["logits"],
        external_data=False,
    )


def write_coreml(model: ResNeSt, side: int, path: Path) -> None:
    """Write `model` to the package `path` by coremltools' documented way, tracing.

    Args:
        model: in evaluation mode.
        side: of the images, in pixels.
        path: of the package: float16, iOS 17, names as in `write_onnx`.
    """
    import coremltools as ct

    example = torch.zeros(1, 3, side, side)
    with torch.no_grad():
        traced = torch.jit.trace(research_form(model), example)  # type: ignore[no-untyped-call]
    package = ct.convert(
        traced,
        inputs=[ct.TensorType(name="image", shape=example.shape)],
        outputs=[ct.TensorType(name="logits")],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        skip_model_load=True,
    )
    package.save(str(path))
