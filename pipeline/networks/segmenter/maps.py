"""The images that a backbone gives: how large, and where in it they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SIDE = 256
"""Of an image that a backbone is tried with; every stride up to 32 divides it."""


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What a backbone gives, the largest image first.

    Attributes:
        channels: of each image.
        strides: by how much its sides are smaller than those of the network's image.
        made_by: path of the module in the backbone whose result it is; "" where none is.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    made_by: tuple[str, ...] = ()

    def at(self, stride: int) -> int:
        """The place of the first image at a stride."""
        return self.strides.index(stride)


def maps_of(trunk: nn.Module, channels: int) -> Maps:
    """What a backbone gives for images of so many channels; found without values."""
    made: dict[int, tuple[str, Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, given: object, result: object) -> None:
            if isinstance(result, Tensor):
                found = made.get(id(result))
                # What holds a module whose result it hands on comes after it, with a shorter path.
                if found is None or name.count(".") < found[0].count("."):
                    made[id(result)] = name, result  # kept, so that no other takes its number

        return record

    hooks = [m.register_forward_hook(hook(name)) for name, m in trunk.named_modules()]
    found = on_meta(trunk, torch.empty(1, channels, SIDE, SIDE, device="meta"))
    for handle in hooks:
        handle.remove()
    return Maps(
        channels=tuple(one.shape[1] for one in found),
        strides=tuple(SIDE // one.shape[-1] for one in found),
        made_by=tuple(made[id(one)][0] if id(one) in made else "" for one in found),
    )


def on_meta(trunk: nn.Module, image: Tensor) -> list[Tensor]:
    """What a backbone gives for an image, without values."""
    tensors = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    training = trunk.training
    with torch.no_grad():
        found: list[Tensor] = torch.func.functional_call(trunk.eval(), shapes, image)
    trunk.train(training)
    return found
