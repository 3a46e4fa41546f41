"""What of a training is this process's: its share of a batch, its precision, when it stops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import fx, nn

from pipeline.base import torchrun
from pipeline.base.errors import InputError
from pipeline.base.torchrun import device, has_bfloat16
from pipeline.recipe.training import TrainConfig
from pipeline.tasks.images.batches import ProcessShare


def share_of(config: TrainConfig, part: str) -> ProcessShare:
    """What of every batch this process is given: `accumulate` parts, one after the other.

    Raises:
        InputError: a part would have less than two images; names the `part` of the recipe.
    """
    parts = torchrun.count() * config.accumulate
    if config.batch_size < 2 * parts:
        raise InputError(
            f"{part}.batch_size: got {config.batch_size}; {torchrun.count()} processes "
            f"times accumulate {config.accumulate} need two images each, so at least {2 * parts}; "
            "raise it"
        )
    first = torchrun.rank() * config.accumulate
    return ProcessShare(parts=parts, first=first, number=config.accumulate)


def autocast(model: nn.Module, config: TrainConfig) -> Callable[[], AbstractContextManager[None]]:
    """What a network's forward pass runs in: bfloat16 convolutions, or nothing."""
    exact = isinstance(model, fx.GraphModule)  # rounds to the int8 grid; see the recipe
    wanted = has_bfloat16() and not exact if config.precision == "auto" else True
    if config.precision == "float32" or not wanted:
        return nullcontext
    return partial(torch.autocast, device().type, torch.bfloat16)


def agreed(asked: int | None, due: bool) -> tuple[int | None, bool]:
    """What the process that was asked to end, and the one that finds it is time, tell the others.

    A signal reaches the processes one after the other, and their clocks differ.
    """
    if torchrun.count() == 1:
        return asked, due
    word = torchrun.greatest(torch.tensor([asked or 0, due], device=device())).tolist()
    return word[0] or None, bool(word[1])
