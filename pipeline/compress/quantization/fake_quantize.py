"""Fake quantization on the shared grids, in the form torchao's PT2E flow expects.

torchao's own classes recompute a grid from the observed range when the program is converted;
these keep the float16-representable numbers training ran with, so that nothing shifts there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase

from pipeline.base import torchrun
from pipeline.compress.quantization import grid
from pipeline.recipe.weight_forms import WeightForm


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """`x` rounded to a grid of int8."""
    if x.is_cuda:  # where reading a scale back would wait for the device
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, grid.QMIN, grid.QMAX)
    step, zero = float(scale), int(zero_point)
    # The same numbers as torch's own kernel, which is slower by an order of magnitude on a CPU.
    return (x.float() * (1 / step)).round_().clamp_(grid.QMIN - zero, grid.QMAX - zero).mul_(step)


class _RoundActivation(torch.autograd.Function):
    """Values to their grid; the gradient passes inside the range (straight-through).

    What is inside is read off the result, which the next operation keeps anyway: no mask, no
    memory. So the first and the last number of a grid pass no gradient, as a ReLU passes none at
    zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """`x` on the grid."""
        result = _rounded(x, scale, zero_point)
        # Copies, since observers write the scale anew.
        low, high = ((edge - zero_point) * scale for edge in (grid.QMIN, grid.QMAX))
        ctx.save_for_backward(result, low, high)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient where the result is between the ends of the grid, else zero."""
        result, low, high = ctx.saved_tensors
        if result.is_cuda:
            inside = (result > low) & (result < high)
            return gradients[0] * inside, None, None
        ends = float(low), float(high)
        return torch.ops.aten.hardtanh_backward(gradients[0], result, *ends), None, None


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
        self.rectifies = False
        """Whether `x` comes from before a ReLU that this module stands for as well: a grid that
        starts at zero clamps there anyway, so one pass over the tensor does both."""
        self.tied: tuple[ActivationFakeQuantize, ...] = (self,)
        """Those that have one grid with this one, itself among them."""
        self.sums: tuple[ActivationFakeQuantize, ...] = ()
        """What rounds the sums that read this one: see `sums.keep_near`."""
        self.parts: tuple[ActivationFakeQuantize, ...] = ()
        """What rounds the parts of the sum that this one rounds."""

    def _observe(self, x: Tensor) -> None:
        if self.rectifies:
            low, high = torch.zeros_like(self.low), x.detach().amax().clamp(min=0.0).float()
        else:
            low, high = (edge.float() for edge in torch.aminmax(x.detach()))
        low, high = torchrun.least(low), torchrun.greatest(high)
        if torch.isinf(self.low):
            self.low.copy_(low)
            self.high.copy_(high)
        else:
            self.low.lerp_(low, self.averaging)
            self.high.lerp_(high, self.averaging)
        self.take_ranges()

    def take_ranges(self) -> None:
        """Make the grid of this range, of those that are tied to it, and of parts far below it."""
        seen = [one for one in self.tied if not torch.isinf(one.low)]
        low, high = (torch.stack([getattr(one, end) for one in seen]) for end in ("low", "high"))
        scale, zero_point = grid.activation_grid(low.amin(), high.amax(), self._least_scale())
        for one in self.tied:
            one.scale.copy_(scale)
            one.zero_point.copy_(zero_point)
        for part in dict.fromkeys(part for one in self.tied for part in one.parts):
            if not torch.isinf(part.low) and float(part.scale) < part._least_scale():
                part.take_ranges()

    def _least_scale(self) -> float:
        """The smallest that the scale may be, for the sums that read what is rounded."""
        sums = [one for member in self.tied for one in member.sums if not torch.isinf(one.low)]
        scales = [float(one.scale) * grid.LEAST_PART for one in sums if one not in self.tied]
        return max([grid.SMALLEST_ACTIVATION_SCALE, *scales])

    def forward(self, x: Tensor) -> Tensor:
        """Round `x` to the grid; the gradient passes where the result lies inside the range."""
        if self.observer_enabled[0] == 1:
            self._observe(x)
        if self.fake_quant_enabled[0] == 1:
            x = _RoundActivation.apply(x, self.scale, self.zero_point)  # type: ignore[no-untyped-call]
        elif self.rectifies:
            x = torch.relu(x)
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


class _RoundWeight(torch.autograd.Function):
    """Weights to their grids; the gradient passes as it is (straight-through).

    No weight is beyond its channel's grid, which is made of the largest, so that no mask need be
    kept, and backward costs nothing.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        """`weight` rounded to whole multiples of `scale`, which is one per output channel."""
        by_channel = scale.reshape(-1, *[1] * (weight.dim() - 1))
        steps = torch.mul(weight, 1 / by_channel).round_()
        return steps.clamp_(-grid.WEIGHT_QMAX, grid.WEIGHT_QMAX).mul_(by_channel)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of the rounded weights is that of the weights."""
        return gradients[0], None


class WeightFakeQuantize(FakeQuantizeBase):
    """Per-channel symmetric int8; the scale always follows the present weights.

    A frozen weight scale would leave channels whose largest weight no longer reaches 127, which
    TFLite's converter cannot represent: it derives the scale from the weights it is given.
    """

    form: WeightForm = "int8"

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.dtype = torch.int8
        self.qscheme = torch.per_channel_symmetric
        self.quant_min, self.quant_max = -grid.WEIGHT_QMAX, grid.WEIGHT_QMAX
        self.is_dynamic = False
        self.ch_axis = 0
        self.register_buffer("scale", torch.ones(1))

    def forward(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """Round `weight` to the grid of its output channels.

        Args:
            weight: (out channels, ...).
            factor: (out channels), what batch normalisation will multiply the weights by when it
                is folded into them. The grid is then that of the product: `w * f` rounded to
                steps of `q` is `f` times `w` rounded to steps of `q / |f|`, so neither the
                weights nor what the convolution makes of them have to be scaled and scaled back.
        """
        largest = grid.largest_weights(weight)
        if factor is not None:
            factor = factor.detach().abs()
            largest = largest * factor
        scale = grid.scales_of_largest(largest)
        if self.scale.shape != scale.shape:
            self.scale.resize_(scale.shape)
        self.scale.copy_(scale)
        if self.fake_quant_enabled[0] == 1:
            # A factor of zero makes every step do: nothing of the channel is left.
            tiny = torch.finfo(weight.dtype).tiny
            step = scale if factor is None else scale / factor.clamp(min=tiny)
            weight = _RoundWeight.apply(weight, step)  # type: ignore[no-untyped-call]
        return weight

    def folded(self, factor: Tensor) -> None:
        """Be told that the weights were multiplied by `factor`, one per output channel."""

    def raise_to(self, weight: Tensor, smallest: Tensor) -> None:
        """Let no scale be smaller than `smallest`, one per output channel.

        Scales follow the largest weights, so that these are changed in place.
        """
        weight.copy_(grid.raised_to(weight, smallest))

    def store(self, weight: Tensor) -> None:
        """Change weights in place to what is to be rounded to whole numbers of the scales."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales and zero points, one per output channel."""
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int32)


def only_round(model: nn.Module) -> None:
    """Learn nothing more: every grid stays as it is, and every value is rounded to its grid."""
    for module in model.modules():
        if isinstance(module, FakeQuantizeBase):
            module.enable_observer(False)
            module.enable_fake_quant(True)
