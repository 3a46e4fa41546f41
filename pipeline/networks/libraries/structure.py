"""Where in a network of others is what, found by running it without values.

remember(model, structure_of(model, 224))
structure(model)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.networks.family import Structure
from pipeline.recipe.input_shape import InputShape

_KEPT = "pocketnest_structure"
_WEIGHTED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A module that ran.

    Attributes:
        name: its path.
        module: itself.
        shape: of what it gave; () for no tensor.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def structure_of(model: nn.Module, shape: InputShape) -> Structure:
    """The classifier of a network, the ends of its stages, and what sparsifying leaves alone.

    The classifier is the last convolution or linear layer that runs; a stage ends at the last block
    that gives images of one size, a block being what the network holds itself, or one of a list or
    sequence that it holds.

    Args:
        model: (1, channels, height, width) to (1, outputs), or to maps (1, outputs, h, w).
        shape: of an image.

    Raises:
        InputError: the network cannot take such images, gives no (batch, outputs) and no
            maps, or its last layer does not give its outputs.
    """
    calls, outputs = _run(model, shape)
    weighted = [call for call in calls if isinstance(call.module, _WEIGHTED)]
    if not weighted:
        raise InputError("model.name: the network has no convolution and no linear layer")
    first, last = weighted[0], weighted[-1]
    if last.shape[1] != outputs:
        raise InputError(
            f"model.name: {last.name} is the last layer of the network and gives {last.shape[1]} "
            f"numbers, the network {outputs}; the logits must come from its last layer"
        )
    stages = _stage_ends([c for c in calls if _is_block(c)])
    return Structure(classifier=last.name, stages=stages, dense=(first.name, last.name))


def remember(model: nn.Module, structure: Structure) -> nn.Module:
    """The same network, with its structure; copies have it, too."""
    setattr(model, _KEPT, structure)
    return model


def structure(model: nn.Module) -> Structure:
    """The structure that a network was given."""
    found: Structure = getattr(model, _KEPT)
    return found


def _is_block(call: _Call) -> bool:
    """Whether a module is a block: holds layers, and stands near the top of the network."""
    parts = call.name.split(".")
    near = len(parts) == 1 or (len(parts) == 2 and parts[1].isdigit())
    holds = any(isinstance(module, _WEIGHTED) for module in call.module.children()) or any(
        True for child in call.module.children() if any(True for _ in child.children())
    )
    return bool(call.name) and near and holds and len(call.shape) == 4


def _stage_ends(blocks: list[_Call]) -> tuple[str, ...]:
    """The last block of each size, the whole of a list or sequence before one of its parts."""
    ends: dict[int, str] = {}
    for block in blocks:
        ends[block.shape[-1]] = block.name
    # A block that holds another stage's end is none itself: its name would stand for both.
    inside = {end for end in ends.values() if any(o.startswith(f"{end}.") for o in ends.values())}
    return tuple(end for end in ends.values() if end not in inside)


def _run(model: nn.Module, taken: InputShape) -> tuple[list[_Call], int]:
    """Every module that ran, in the order in which they ended, and the number of outputs."""
    calls: list[_Call] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, _: object, output: object) -> None:
            shape = tuple(output.shape) if isinstance(output, Tensor) else ()
            calls.append(_Call(name=name, module=module, shape=shape))

        return record

    hooks = [m.register_forward_hook(hook(name)) for name, m in model.named_modules()]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
    image = torch.zeros(taken.batch(1), device="meta")
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            output = torch.func.functional_call(model.eval(), shapes, image)
    except (RuntimeError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.input_size: the network cannot take images of {taken} pixels "
            f"({text}); give it a larger one"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"model.name: the network gives {kind} for one image; it must give a tensor (batch, "
            "outputs), or maps (batch, outputs, height, width)"
        )
    return calls, output.shape[1]
