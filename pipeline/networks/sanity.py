"""Whether a network's numbers can be right: they are finite, and every layer passes something on.

Nothing here changes a number. What raises names the part of the recipe, the layer, how many values
are wrong, and what to change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError, listed

_STATISTICS = ("running_mean", "running_var")
_REVIVING = {
    "model.checkpoint": "take another checkpoint",
    "train": "lower train.learning_rate or train.weight_decay",
    "prune.finetune": "remove less, or lower learning_rate or weight_decay in prune.finetune",
    "sparsify.train": "lower sparsify.sparsity, or set sparsify.scope to layer",
    "qat.train": "lower qat.train.learning_rate or qat.train.weight_decay",
}
"""What to change where a layer is left without weights, by the part of the recipe that did it."""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Which tensors hold NaN or infinity, and how often the first does; empty if none does.

    Args:
        tensors: by name, of any shape.
    """
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if not broken:
        return ""
    first = tensors[broken[0]]
    count = int((~first.isfinite()).sum())
    those = f"its {first.numel()} values" if len(broken) == 1 else f"{first.numel()} in the first"
    return f"NaN or infinity in {listed(broken)}; {count} of {those}"


def refuse_not_finite(part: str, model: nn.Module, ending: str = "") -> None:
    """Stop where weights or statistics of batch normalisation are not finite.

    Args:
        part: of the recipe, such as `prune.finetune`: what the network was trained by.
        model: a module or an exported graph. Observers' ranges are left to
            `pipeline.qat.refuse_bad_grids`: infinite ones have seen nothing.
        ending: of the message.

    Raises:
        InputError: names the first tensors, and how many values of the first are wrong.
    """
    tensors = {name: value.detach() for name, value in model.named_parameters()}
    tensors |= {name: v for name, v in model.named_buffers() if name.endswith(_STATISTICS)}
    if found := not_finite(tensors):
        raise InputError(f"{part}: {found}; {calmer(part)}{ending}")


def calmer(part: str) -> str:
    """What to change where a training diverges; `part` of the recipe is the training."""
    return f"lower learning_rate or set clip_norm in {part}"


def dead_layers(model: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers all of whose weights are zero.

    The factors of batch normalisations are not looked at: those at the end of every block are zero
    when a training begins (`ResNeSt.start_as_identity`).
    """
    return [
        name.removesuffix(".weight")
        for name, value in model.named_parameters()
        if value.dim() > 1 and not value.any()
    ]


def refuse_dead(part: str, model: nn.Module, file: Path | None = None) -> None:
    """Stop where a layer has no weight but zero: nothing of its input passes.

    Args:
        part: of the recipe that made the network what it is: `model.checkpoint` or a training.
        model: a module or an exported graph.
        file: that it was read from.

    Raises:
        InputError: names the layers.
    """
    if dead := dead_layers(model):
        read = "" if file is None else f"{file}: "
        raise InputError(
            f"{part}: {read}all weights of {listed(dead)} are zero, so that nothing passes there; "
            f"{_REVIVING[part]}"
        )


def refuse_bad_logits(
    where: str, logits: Tensor, model: nn.Module, image_at: Callable[[int], Tensor]
) -> None:
    """Stop where a network answers with NaN or infinity.

    Args:
        where: stage and test set, for the message.
        logits: (images, ...).
        model: that gave them, in evaluation mode.
        image_at: the image (1, 3, side, side) of a row, where the network is.

    Raises:
        InputError: names the first layer, and how many images and values are wrong.
    """
    bad = (~logits.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(bad) == 0:
        return
    layer = _first_not_finite(model, image_at(int(bad[0])))
    raise InputError(
        f"{where}: the logits of {len(bad)} of {len(logits)} images are NaN or infinite{layer}; "
        "take another checkpoint, or train again with a lower learning_rate or with clip_norm"
    )


def _first_not_finite(model: nn.Module, image: Tensor) -> str:
    """Where a network's numbers stop to be finite, in words; empty where they do not."""
    found: list[str] = []

    def look(name: str, output: Tensor) -> None:
        if not found and not output.isfinite().all():
            wrong = int((~output.isfinite()).sum())
            found.append(f", first in {name} ({wrong} of {output.numel()} values of one image)")

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: look(name, output))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return "".join(found)
