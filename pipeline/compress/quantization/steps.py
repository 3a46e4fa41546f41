"""Fake quantization of weights to whole numbers of 4 bits, of steps that are learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.compress.quantization import blocks, grid
from pipeline.compress.quantization.fake_quantize import WeightFakeQuantize
from pipeline.recipe.weight_forms import INT4_QMAX, WeightForm

_TRIED, _LEAST_OF_LARGEST = 64, 0.25
"""Steps that are tried at the start: so many, from that share of the largest weight's up."""
_LESS_BIAS = 8
"""By which fewer steps a bias has: 2^26 at most, of 2^27 that fit, so that products do too."""


def nearest_steps(
    weight: Tensor, most: int = INT4_QMAX, importance: Tensor | None = None
) -> Tensor:
    """The steps whose whole numbers -most..most are nearest to each channel's weights.

    Least squares over steps from a quarter of that of the largest weight up to it; float32, above
    zero, one per output channel.

    Args:
        weight: (out channels, ...).
        most: largest whole number.
        importance: of the square of each weight's error, (out channels, inputs); all alike if left
            out.
    """
    rows = weight.detach().flatten(1).float()
    largest = grid.largest_weights(rows).clamp(min=grid.SMALLEST_WEIGHT_SCALE * most) / most
    best, error = largest, torch.full_like(largest, torch.inf)
    for share in torch.linspace(_LEAST_OF_LARGEST, 1.0, _TRIED):
        step = largest * share
        rounded = (rows / step[:, None]).round_().clamp_(-most, most).mul_(step[:, None])
        squares = rounded.sub_(rows).square_()
        found = (squares if importance is None else squares.mul_(importance)).sum(1)
        best, error = torch.where(found < error, step, best), torch.minimum(found, error)
    return best


class _RoundToLearned(torch.autograd.Function):
    """Weights to whole numbers of learned steps.

    Esser et al. 2020, "Learned Step Size Quantization", https://arxiv.org/abs/1902.08153,
    equations 1 to 3 and section 2.2.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, learned: Tensor, step: Tensor, multiples: Tensor, most: int
    ) -> Tensor:
        """`weight` rounded to whole numbers of steps.

        Args:
            ctx: keeps what the gradients take.
            weight: (out channels, ...).
            learned: the step of each channel.
            step: it, as a file can hold it.
            multiples: of it, by which the numbers of each weight go; of the shape of `weight`, or
                one that broadcasts to it.
            most: largest whole number.
        """
        each = step.reshape(-1, *[1] * (weight.dim() - 1)) * multiples
        scaled = weight / each
        whole = scaled.round().clamp_(-most, most)
        ctx.save_for_backward(scaled, whole, multiples)
        ctx.most = most
        return whole * each

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Straight through inside the range; a step's is that of what rounding does to weights."""
        scaled, whole, multiples = ctx.saved_tensors
        inside = scaled.abs() <= ctx.most
        of_step = torch.where(inside, whole - scaled, whole) * multiples * gradients[0]
        number = scaled[0].numel()
        learned = of_step.flatten(1).sum(1) / math.sqrt(number * ctx.most)
        return gradients[0] * inside, learned, None, None, None


class SteppedFakeQuantize(WeightFakeQuantize):
    """Per-channel symmetric numbers of 4 bits; their steps are learned with the weights."""

    form: WeightForm = "int4"

    def __init__(self, weight: Tensor, enabled: WeightFakeQuantize) -> None:
        super().__init__()
        take_switches(self, enabled)
        self.quant_min, self.quant_max = -INT4_QMAX, INT4_QMAX
        self.step = nn.Parameter(self._steps(weight))
        self.scale = torch.ones_like(self.step.detach())

    def _steps(self, weight: Tensor) -> Tensor:
        return nearest_steps(weight)

    def multiples_for(self, weight: Tensor) -> Tensor:
        """By which the steps of weights go; of their shape, or one that broadcasts to it."""
        return torch.ones_like(self.scale).reshape(-1, *[1] * (weight.dim() - 1))

    def _as_scale(self, step: Tensor) -> Tensor:
        return as_scale(step)

    def forward(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """Round `weight` to the grid of its output channels; as `WeightFakeQuantize.forward`."""
        step = self.held_step(factor)
        if self.fake_quant_enabled[0] == 1:
            rounded: Tensor = _RoundToLearned.apply(  # type: ignore[no-untyped-call]
                weight, self.step, step, self.multiples_for(weight), INT4_QMAX
            )
            return rounded
        return weight

    def held_step(self, factor: Tensor | None) -> Tensor:
        """The step of each channel, as a file can hold it once `factor` is multiplied into it.

        Args:
            factor: of the output channels, or None.
        """
        step = self.step.detach().clamp(min=torch.finfo(torch.float32).tiny)
        factor = magnitude(factor, step)
        self.scale.copy_(self._as_scale(step * factor))
        return self.scale / factor

    def folded(self, factor: Tensor) -> None:
        """Be told that the weights were multiplied by `factor`: so are their steps."""
        with torch.no_grad():
            self.step.mul_(factor.abs())

    def raise_to(self, weight: Tensor, smallest: Tensor) -> None:
        """Let no scale be smaller than eight times `smallest`, one per output channel.

        XNNPACK's kernels of 4 bits add up 16 times products and bias, in int32 as others.
        """
        with torch.no_grad():
            self.step.copy_(torch.maximum(self.step, _LESS_BIAS * smallest))

    def keep_step(self) -> None:
        """Let steps stay: they do so anyway, until they are trained."""

    def store(self, weight: Tensor) -> None:
        """Change weights in place to the rounded ones, which are rounded to themselves again."""
        store_rounded(self, weight)


class BlockedFakeQuantize(SteppedFakeQuantize):
    """The same with a step for each block of input channels: a multiple of the channel's."""

    form: WeightForm = "int4_blocks"
    multiples: Tensor

    def __init__(self, weight: Tensor, enabled: WeightFakeQuantize) -> None:
        super().__init__(weight, enabled)
        self.quant_min, self.quant_max = -grid.WEIGHT_QMAX, grid.WEIGHT_QMAX

    def _steps(self, weight: Tensor) -> Tensor:
        rows = blocks.by_block(weight)
        wanted = nearest_steps(rows.flatten(0, 1)).reshape(rows.shape[:2])
        steps, multiples = blocks.steps_of_blocks(wanted)
        self.register_buffer("multiples", multiples)
        return steps

    def take_steps(self, wanted: Tensor) -> None:
        """Have the steps and multiples that are nearest to those of blocks: (out, blocks)."""
        steps, multiples = blocks.steps_of_blocks(wanted)
        self.step.copy_(steps)
        self.multiples.copy_(multiples)

    def multiples_for(self, weight: Tensor) -> Tensor:
        """By which the steps of weights go, block by block."""
        return blocks.by_weight(self.multiples, weight)

    def _as_scale(self, step: Tensor) -> Tensor:
        return blocks.short_scale(step.clamp(min=grid.SMALLEST_WEIGHT_SCALE))

    def raise_to(self, weight: Tensor, smallest: Tensor) -> None:
        """Let no scale be smaller than `smallest`; with one block, as of `int4`."""
        if self.multiples.shape[1] == 1:
            super().raise_to(weight, smallest)
            return
        with torch.no_grad():
            self.step.copy_(torch.maximum(self.step, smallest))


def as_scale(step: Tensor) -> Tensor:
    """The next scale at or below a step that a file can hold."""
    return grid.float16_down(step.clamp(min=grid.SMALLEST_WEIGHT_SCALE))


def store_rounded(module: WeightFakeQuantize, weight: Tensor) -> None:
    """Change weights in place to what a module rounds them to."""
    module.enable_fake_quant(True)
    with torch.no_grad():
        weight.copy_(module(weight))


def magnitude(factor: Tensor | None, like: Tensor) -> Tensor:
    """What weights will be multiplied by, without its sign; not zero, where nothing is left."""
    if factor is None:
        return torch.ones_like(like)
    return factor.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)


def take_switches(module: WeightFakeQuantize, other: WeightFakeQuantize) -> None:
    """Let a module round and observe where another one does."""
    module.fake_quant_enabled.copy_(other.fake_quant_enabled)
    module.observer_enabled.copy_(other.observer_enabled)
