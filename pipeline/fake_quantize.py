"""Fake quantization on the shared grids, in the form torchao's PT2E flow expects.

torchao's own classes recompute a grid from the observed range when the program is converted;
these keep the float16-representable numbers training ran with, so that nothing shifts there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline import grid


class ActivationFakeQuantize(FakeQuantizeBase):
    """Per-tensor affine int8 with an exponential moving average of the range."""

    def __init__(self, averaging: float = 0.05, **_: Any) -> None:
        super().__init__()
        self.averaging = averaging
        self.dtype = torch.int8
        self.qscheme = torch.per_tensor_affine
        self.quant_min, self.quant_max = grid.QMIN, grid.QMAX
        self.is_dynamic = False
        self.ch_axis = -1
        self.register_buffer("low", torch.tensor(float("inf")))
        self.register_buffer("high", torch.tensor(float("-inf")))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def _observe(self, x: Tensor) -> None:
        low, high = torch.aminmax(x.detach())
        if torch.isinf(self.low):
            self.low.copy_(low)
            self.high.copy_(high)
        else:
            self.low.lerp_(low, self.averaging)
            self.high.lerp_(high, self.averaging)
        scale, zero_point = grid.activation_grid(self.low, self.high)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` to the grid; the gradient passes inside the range (straight-through)."""
        if self.observer_enabled[0] == 1:
            self._observe(x)
        if self.fake_quant_enabled[0] == 1:
            x = torch.fake_quantize_per_tensor_affine(
                x, self.scale, self.zero_point, self.quant_min, self.quant_max
            )
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The grid that training ran with: scale and zero point, one element each."""
        return self.scale.reshape(1), self.zero_point.reshape(1)


class FixedFakeQuantize(ActivationFakeQuantize):
    """A grid known beforehand: that of sigmoid and softmax outputs, or of camera pixels."""

    def __init__(self, *, scale: float, zero_point: int, **_: Any) -> None:
        super().__init__()
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def _observe(self, x: Tensor) -> None:
        """Nothing to learn: the grid is fixed."""


class WeightFakeQuantize(FakeQuantizeBase):
    """Per-channel symmetric int8; the scale always follows the present weights.

    A frozen weight scale would leave channels whose largest weight no longer reaches 127, which
    TFLite's converter cannot represent: it derives the scale from the weights it is given.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.int8
        self.qscheme = torch.per_channel_symmetric
        self.quant_min, self.quant_max = -grid.WEIGHT_QMAX, grid.WEIGHT_QMAX
        self.is_dynamic = False
        self.ch_axis = 0
        self.register_buffer("scale", torch.ones(1))

    def forward(self, weight: Tensor) -> Tensor:
        """Round `weight` to the grid of its output channels."""
        scale = grid.weight_scales(weight)
        if self.scale.shape != scale.shape:
            self.scale.resize_(scale.shape)
        self.scale.copy_(scale)
        if self.fake_quant_enabled[0] == 1:
            zero = torch.zeros_like(scale, dtype=torch.int32)
            weight = torch.fake_quantize_per_channel_affine(
                weight, scale, zero, 0, self.quant_min, self.quant_max
            )
        return weight

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points, one per output channel."""
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int32)


def only_round(model: nn.Module) -> None:
    """Learn nothing more: every grid stays as it is, and every value is rounded to its grid."""
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(False)
            module.enable_fake_quant(True)
