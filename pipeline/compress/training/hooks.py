"""What a stage adds to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pipeline.compress.training.resume import State
from pipeline.networks.own_state import take_state


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where a training stands; `loss` and `accuracy` are means over the epoch so far."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a stage adds to the loop.

    Attributes:
        part: of the recipe that the training follows, for errors.
        watch: called after every step, for the progress bar.
        before_step: called with (step, steps) before every step.
        after_backward: called when a step's gradients are there and no weight has changed yet.
        after_step: called when a step's weights have changed.
        adjust_loss: called with (images, answers, the task's loss), all where the network
            is; what it returns is minimised.
        set_training: switches the network between training and evaluation; exported graphs
            have no `train()` of their own.
        load: gives the network a saved state; buffers of exported graphs change their shapes.
        state: what the stage has to keep beside the network to go on from a step.
        set_state: takes that back.
    """

    part: str = "train"
    watch: Callable[[Step], None] = lambda step: None
    before_step: Callable[[int, int], None] = lambda step, steps: None
    after_backward: Callable[[], None] = lambda: None
    after_step: Callable[[], None] = lambda: None
    adjust_loss: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda images, logits, loss: loss
    set_training: Callable[[nn.Module, bool], object] = lambda model, mode: model.train(mode)
    load: Callable[[Any, State], object] = take_state
    state: Callable[[], State] = dict
    set_state: Callable[[State], None] = lambda state: None
