"""Pictures of class maps: each class in a colour of its own, always the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.tasks.images.preparation import VOID

_GAP = 4
"""Pixels between pictures that stand side by side."""
_SAME, _OTHER, _NONE = (235, 235, 235), (200, 30, 30), (255, 255, 255)


def palette() -> NDArray[np.uint8]:
    """Red, green and blue of every class, [256, 3]; void is white.

    The bits of a class, the lowest first, become the highest bits of the three colours in turn, so
    that classes side by side differ most: the colour map of Pascal VOC's masks.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> channel) & 1) << (7 - bit)).astype(np.uint8)
        numbers >>= 3
    colours[VOID] = _NONE
    return colours


def coloured(classes: Tensor) -> Image.Image:
    """A class map uint8 [H, W] in colours."""
    return Image.fromarray(palette()[classes.numpy()])


def photo(pixels: Tensor) -> Image.Image:
    """An image uint8 [C, H, W]."""
    rgb = pixels if len(pixels) == 3 else pixels.expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(rgb.permute(1, 2, 0).numpy()))


def different(one: Tensor, two: Tensor) -> Image.Image:
    """Where two class maps differ, in red; void of either in white."""
    colours = torch.tensor([_SAME, _OTHER, _NONE], dtype=torch.uint8)
    kinds = (one != two).long()
    kinds[(one == VOID) | (two == VOID)] = 2
    return Image.fromarray(colours[kinds].numpy())


def joined(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height side by side, on white."""
    width = sum(one.width for one in pictures) + _GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(one.height for one in pictures)), _NONE)
    left = 0
    for one in pictures:
        whole.paste(one, (left, 0))
        left += one.width + _GAP
    return whole
