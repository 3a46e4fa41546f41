"""Parameters and multiply-accumulates (MACs) of a network, counted along one image's shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.recipe.input_shape import InputShape

_COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class LayerCount:
    """One convolution or linear layer.

    Attributes:
        name: dotted, as in `named_modules`.
        kernel: height and width; (1, 1) for a linear layer.
        groups: into which the channels are divided.
        inputs: channels.
        outputs: channels.
        biased: whether it has biases.
        params: weights and biases of this layer.
        macs: for one image; all calls together where a forward calls the layer several times.
        output_shape: of one image, the batch of 1 included; of the last call.
    """

    name: str
    kernel: tuple[int, ...]
    groups: int
    inputs: int
    outputs: int
    biased: bool
    params: int
    macs: int
    output_shape: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Output positions of one image: height x width, all calls together."""
        weights = self.inputs * self.outputs * math.prod(self.kernel) // self.groups
        return self.macs // weights


@dataclass(frozen=True, kw_only=True)
class Counts:
    """A whole network.

    Attributes:
        params: all parameters, also those of layers that have no MACs (batch normalisation).
        macs: of all convolutions and linear layers for one image; additions of a bias,
            activations, pools and element-wise products are not counted.
        layers: in the order in which they first ran.
    """

    params: int
    macs: int
    layers: tuple[LayerCount, ...]


def _weights_per_output(layer: nn.Module) -> int:
    """How many weights one output number is a sum over: inputs per group times kernel area."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight[0].numel()


def count(model: nn.Module, shape: InputShape) -> Counts:
    """Count what `model` holds and does for one image of `shape`.

    Runs it on one image in eval mode, without values: nothing is computed but shapes, which takes
    no time and no memory however large the network is. Training modes, batch-norm statistics and
    the random state stay as they are.

        >>> count(nn.Conv2d(3, 8, 3, padding=1, bias=False), square(10)).macs  # 8*10*10, 27 each
        21600
    """
    layers: dict[str, LayerCount] = {}

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(layer: nn.Module, _: object, output: Tensor) -> None:
            earlier = layers[name].macs if name in layers else 0
            weight = layer.weight
            assert isinstance(weight, Tensor)
            groups = int(getattr(layer, "groups", 1))
            layers[name] = LayerCount(
                name=name,
                kernel=tuple(weight.shape[2:]) or (1, 1),
                groups=groups,
                inputs=weight.shape[1] * groups,
                outputs=weight.shape[0],
                biased=layer.bias is not None,
                params=sum(p.numel() for p in layer.parameters()),
                macs=earlier + output.numel() * _weights_per_output(layer),
                output_shape=tuple(output.shape),
            )

        return record

    modes = {module: module.training for module in model.modules()}
    hooks = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, _COUNTED)
    ]
    parameters = list(model.parameters())
    dtype = parameters[0].dtype if parameters else None
    image = torch.zeros(shape.batch(1), dtype=dtype, device="meta")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    try:
        with torch.no_grad():
            torch.func.functional_call(model.eval(), shapes, image)
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return Counts(
        params=sum(p.numel() for p in parameters),
        macs=sum(layer.macs for layer in layers.values()),
        layers=tuple(layers.values()),
    )
