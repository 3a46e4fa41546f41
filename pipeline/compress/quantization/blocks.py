"""Weights of 4 bits whose step differs from block to block of input channels.

A weight is `step[channel] * multiple[channel, block] * q`, with whole numbers `q` from -7 to 7 and
multiples from 1 to 16. Then `multiple * q` is an int8 number of the channel's step: the program and
its kernels stay those of int8, and a file stores 4 bits a weight and the multiples. Steps of whole
multiples of another are those of Dai et al. 2021, "VS-Quant: Per-vector Scaled Quantization for
Accurate Low-Precision Neural Network Inference", https://arxiv.org/abs/2102.04503.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.compress.quantization import grid
from pipeline.recipe.weight_forms import MOST_MULTIPLE, block_of

_BITS = 7
"""Of the significand of a channel's step: with a multiple it is a float16 number to the bit."""


def by_block(weight: Tensor) -> Tensor:
    """Weights (out channels, channels of a group, ...) as (out channels, blocks, weights)."""
    return weight.reshape(len(weight), weight.shape[1] // block_of(weight.shape[1]), -1)


def by_weight(multiples: Tensor, weight: Tensor) -> Tensor:
    """Multiples (out channels, blocks) for every input of `weight`: (out, inputs, 1, ...)."""
    each = multiples.repeat_interleave(weight.shape[1] // multiples.shape[1], 1)
    return each.reshape(*each.shape, *[1] * (weight.dim() - 2))


def steps_of_blocks(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The step of every channel, and its multiples that are nearest to the steps of blocks.

    Args:
        wanted: above zero, (out channels, blocks).

    Returns:
        Steps float32 (out channels), and whole numbers 1..16 as float32, as `wanted`, without a
        common divisor in a channel.
    """
    steps = wanted.amax(1) / (MOST_MULTIPLE if wanted.shape[1] > 1 else 1)
    multiples = (wanted / steps[:, None]).round().clamp(1, MOST_MULTIPLE)
    common = multiples.long()[:, 0].clone()
    for column in multiples.long().unbind(1):
        common = torch.gcd(common, column)
    return steps * common, multiples / common[:, None]


def short_scale(step: Tensor) -> Tensor:
    """The next number at or below a scale that float16 can hold with any multiple."""
    significand, exponent = torch.frexp(grid.float16_down(step))
    return torch.ldexp((significand * 2**_BITS).floor() / 2**_BITS, exponent)
