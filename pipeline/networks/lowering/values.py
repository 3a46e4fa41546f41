"""What an operation of a network becomes while its graph is written anew.

Images, tensors (batch, channels, height, width), are nodes of the new graph. All else is held back
until an operation needs it, since no format moves numbers between axes for free:

    Viewed   an image whose numbers are read in another shape or order, such as a flat vector
    Stacked  several images side by side along an axis of their own
    Pooled   an image of which a pool takes more windows than it has pixels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

Move = Callable[[Tensor], Tensor]
"""Moves the numbers of a tensor, and computes nothing."""


@dataclass(frozen=True, kw_only=True)
class Viewed:
    """An image whose numbers are read in another shape or order.

    Attributes:
        image: node of the new graph, (batch, channels, height, width).
        shape: in which it is read, without the batch.
        moves: from (1, channels, height, width) to (1, *shape), one after the other.
    """

    image: fx.Node
    shape: tuple[int, ...]
    moves: tuple[Move, ...] = ()

    def then(self, move: Move) -> Viewed:
        """The same image, moved once more."""
        moves = (*self.moves, move)
        return replace(self, moves=moves, shape=_shape_after(shape_of(self.image), moves))

    def order(self) -> Tensor:
        """For every number of the view the place that it has in the image: int64, `shape`."""
        shape = shape_of(self.image)
        places = torch.arange(math.prod(shape)).reshape(1, *shape)
        for move in self.moves:
            places = move(places)
        return places[0]


@dataclass(frozen=True, kw_only=True)
class Stacked:
    """Images of one shape, stacked along an axis behind the batch.

    Attributes:
        images: nodes of the new graph.
    """

    images: tuple[fx.Node, ...]


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """An image of which an adaptive average pool takes more windows than there are pixels.

    A linear layer behind it takes them into its weights, and so reads the pixels themselves.

    Attributes:
        image: node of the new graph, (batch, channels, height, width).
        windows: on each axis, height first.
        vector: whether the windows are read as a vector (batch, channels * rows * columns).
    """

    image: fx.Node
    windows: tuple[int, int]
    vector: bool = False


Value = fx.Node | Viewed | Stacked | Pooled
"""What stands for a tensor of the old graph."""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a node's tensor, without the batch."""
    return tuple(int(size) for size in node.meta["val"].shape[1:])


def viewed(value: fx.Node | Viewed) -> Viewed:
    """An image as a view of itself."""
    return value if isinstance(value, Viewed) else Viewed(image=value, shape=shape_of(value))


def flat(image: fx.Node) -> Viewed:
    """An image as a vector (batch, channels * height * width)."""
    return Viewed(image=image, shape=shape_of(image)).then(lambda x: x.flatten(1))


def channels_last(image: fx.Node) -> Viewed:
    """An image with its channels behind height and width."""
    return viewed(image).then(lambda x: x.permute(0, 2, 3, 1))


def is_channels_last(value: object) -> bool:
    """Whether a value is an image with its channels behind height and width."""
    if not isinstance(value, Viewed):
        return False
    expected = channels_last(value.image)
    return value.shape == expected.shape and bool((value.order() == expected.order()).all())


def is_flat(value: object) -> bool:
    """Whether a value is an image read as a vector, its numbers in the order of the image."""
    return isinstance(value, Viewed) and len(value.shape) == 1 and keeps_order(value)


def keeps_order(view: Viewed) -> bool:
    """Whether a view has its image's numbers in their order, whatever its shape."""
    places = view.order().flatten()
    return bool((places == torch.arange(len(places))).all())


def _shape_after(shape: Sequence[int], moves: Sequence[Move]) -> tuple[int, ...]:
    moved = torch.empty((1, *shape), device="meta")
    for move in moves:
        moved = move(moved)
    return tuple(moved.shape[1:])
