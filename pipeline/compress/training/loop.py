"""One training loop for every stage that trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.base import torchrun
from pipeline.base.errors import InputError
from pipeline.base.memory import keep_freed_memory
from pipeline.base.passing import is_passing
from pipeline.base.signals import Interrupted, deferred
from pipeline.base.torchrun import device
from pipeline.compress.training.process import agreed, autocast, share_of
from pipeline.compress.training.regularize import average_of
from pipeline.compress.training.resume import Saves, State
from pipeline.compress.training.schedule import (
    Part,
    at_size,
    batches_per_epoch,
    highest_rate,
    learning_rate_factor,
    optimizer_for,
)
from pipeline.compress.training.small_maps import ByProducts
from pipeline.networks.sanity import calmer, refuse_dead, refuse_not_finite
from pipeline.recipe.training import TrainConfig
from pipeline.tasks.images.batches import Share, batches
from pipeline.tasks.images.dataset import Dataset

if TYPE_CHECKING:
    from pipeline.tasks.task import Loss, Mix, TaskModule

CURVE = "curve.json"
"""Name of the file in which a stage keeps its learning curve."""


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
    load: Callable[[Any, State], object] = lambda model, state: model.load_state_dict(state)
    state: Callable[[], State] = dict
    set_state: Callable[[State], None] = lambda state: None


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What stays the same from epoch to epoch.

    `shared` is the model, its gradients those of all processes; `share`, what this process takes
    of every batch, a part at a time.
    """

    model: nn.Module
    shared: nn.Module
    dataset: Dataset
    config: TrainConfig
    hooks: Hooks
    share: Share
    optimizer: torch.optim.Optimizer
    task: TaskModule
    criterion: Loss
    generator: torch.Generator
    steps_per_epoch: int
    autocast: Callable[[], AbstractContextManager[None]]
    mix: Mix | None
    average: AveragedModel | None
    saves: Saves | None


@dataclass(kw_only=True)
class _Progress:
    """What has been done so far; with the network and the optimizer, all that changes.

    Attributes:
        step: steps that are behind.
        order: of the images in this epoch.
        loss: sum over the images of this epoch so far.
        right: images of this epoch that were answered right.
        seen: images of this epoch.
        rate: learning rate of the last step.
        curve: of the epochs that are behind.
    """

    step: int = 0
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    loss: float = 0.0
    right: float = 0.0
    seen: int = 0
    rate: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    seed: int,
    hooks: Hooks | None = None,
    saves: Saves | None = None,
    *,
    task: TaskModule,
) -> list[dict[str, float]]:
    """Train `model` in place on `dataset.train`.

    Args:
        model: (batch, 3, side, side) to answers (batch, ...); left in evaluation mode.
            The processes of `processes.together` train it on parts of the same batches.
        dataset: what to train on.
        config: schedule and optimizer.
        seed: of the order and the augmentation of the images.
        hooks: progress, milestones and the mode switch.
        saves: where states are kept. What is there is gone on from: the result is bit for bit
            that of a training which was not stopped, on a CPU.
        task: gives the loss, and says which images are answered right.

    Returns:
        The learning curve: one {epoch, loss, accuracy, learning_rate} per epoch.

    Raises:
        InputError: the loss, weights or statistics are not finite, or all weights of a layer are
            zero; names the step or the layer. Or a batch has too few images to be shared.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    keep_freed_memory()
    torch.manual_seed(seed + torchrun.rank())  # what is dropped differs from process to process
    share = share_of(config, (hooks or Hooks()).part)
    # Convolutions run channels-last inside on every device: given so, nothing is reordered.
    model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = _Training(
        model=model,
        shared=model,
        dataset=dataset,
        config=config,
        hooks=hooks or Hooks(),
        share=share,
        optimizer=optimizer_for(model, config),
        task=task,
        criterion=task.loss(config),
        generator=torch.Generator().manual_seed(seed),
        steps_per_epoch=batches_per_epoch(len(dataset.train), config.batch_size, share.parts),
        autocast=autocast(model, config),
        mix=task.mixer(config, len(task.outputs(dataset.classes))),
        average=average_of(model, config),
        saves=saves,
    )
    progress = _Progress()
    if saves is not None and (state := saves.latest()) is not None:
        try:
            _go_on_from(state, training, progress)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_passing(error):
                raise
            raise InputError(
                f"{saves.directory}: holds no state of this training "
                f"({' '.join(str(error).split())[:200]}); remove it and run the same command again"
            ) from error
    training = replace(training, shared=torchrun.sharing_gradients(model))
    with deferred() as asked:
        for _ in range(len(progress.curve), config.epochs):
            _epoch(training, progress, asked)
    if training.average is not None and config.epochs > 0:
        model.load_state_dict(training.average.module.state_dict())
    torchrun.take_buffers_of_first(model)
    _refuse_bad_weights(training)
    refuse_dead(training.hooks.part, model)
    training.hooks.set_training(model, False)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return progress.curve


def _state_of(training: _Training, progress: _Progress) -> State:
    """All that decides how a training goes on."""
    return {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "average": {} if training.average is None else training.average.state_dict(),
        "generator": training.generator.get_state(),
        "random": torchrun.said_by_all(torch.get_rng_state()),
        "random_gpu": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "hooks": training.hooks.state(),
        "progress": vars(progress),
    }


def _go_on_from(state: State, training: _Training, progress: _Progress) -> None:
    """Put everything where it was when `state` was saved."""
    training.hooks.load(training.model, state["model"])
    for name, parameter in training.model.named_parameters():
        # With the strides it had: by them oneDNN chooses kernels, which round differently. Those of
        # a 1 x 1 convolution have several spellings, and cutting weights changes one to another.
        parameter.data = state["model"][name].to(parameter.device)
    training.optimizer.load_state_dict(state["optimizer"])
    if training.average is not None:
        training.average.load_state_dict(state["average"])
    training.generator.set_state(state["generator"])
    if torchrun.count() == len(state["random"]):
        torch.set_rng_state(state["random"][torchrun.rank()])
    if state["random_gpu"]:
        torch.cuda.set_rng_state_all(state["random_gpu"])
    training.hooks.set_state(state["hooks"])
    for name, value in state["progress"].items():
        if type(value) is not type(getattr(progress, name)):
            raise TypeError(f"{name} is a {type(value).__name__}")
        setattr(progress, name, value)
    steps, images = training.steps_per_epoch, len(training.dataset.train)
    if not 0 <= progress.step - len(progress.curve) * steps <= steps:
        raise ValueError(f"step {progress.step} after {len(progress.curve)} epochs")
    if not progress.order.sort().values.equal(torch.arange(images)):
        raise ValueError(f"no order of {images} images")


def _epoch(training: _Training, progress: _Progress, asked: Callable[[], int | None]) -> None:
    """Train over every image once, or over those of an epoch that are left."""
    config, hooks, optimizer = training.config, training.hooks, training.optimizer
    steps = training.steps_per_epoch * config.epochs
    warmup = training.steps_per_epoch * config.warmup_epochs
    milestones = [training.steps_per_epoch * epoch for epoch in config.milestones]
    epoch = len(progress.curve)
    begun = progress.step - epoch * training.steps_per_epoch
    if begun == 0:
        images_of_all = len(training.dataset.train)
        progress.order = torch.randperm(images_of_all, generator=training.generator)
        progress.loss, progress.right, progress.seen = 0.0, 0.0, 0
    hooks.set_training(training.model, True)
    left = batches(
        training.dataset.train,
        config.batch_size,
        training.dataset,
        augment_config=config.augment,
        generator=training.generator,
        order=progress.order[begun * config.batch_size :],
        share=training.share,
        place=device(),  # a GPU augments, and is sent a quarter of the bytes
    )
    while parts := list(islice(left, training.share.number)):
        step = progress.step
        hooks.before_step(step, steps)
        progress.rate = highest_rate(config) * learning_rate_factor(step, steps, warmup, milestones)
        for group in optimizer.param_groups:
            group["lr"] = progress.rate
        done = _step(training, at_size(parts, config, (step, steps), training.generator))
        _refuse_nan(done.loss / done.images, step, training)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(training.model.parameters(), config.clip_norm)
        hooks.after_backward()
        optimizer.step()
        hooks.after_step()
        if training.average is not None:
            training.average.update_parameters(training.model)
        optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.seen += done.images
        progress.loss += done.loss
        progress.right += done.right
        hooks.watch(
            Step(
                step=progress.step,
                steps=steps,
                epoch=epoch + 1,
                epochs=config.epochs,
                loss=progress.loss / progress.seen,
                accuracy=progress.right / progress.seen,
            )
        )
        _save_or_stop(training, progress, asked())
    progress.curve.append(
        {
            "epoch": epoch + 1,
            "loss": progress.loss / progress.seen,
            "accuracy": progress.right / progress.seen,
            "learning_rate": progress.rate,
        }
    )


def _save_or_stop(training: _Training, progress: _Progress, asked: int | None) -> None:
    """Save where it is time to, at the end, and where the program was asked to end."""
    saves, last = training.saves, training.steps_per_epoch * training.config.epochs
    due = saves is not None and saves.due(progress.step)
    asked, due = agreed(asked, due)
    if saves is not None and (asked or progress.step == last or due):
        _refuse_bad_weights(training)  # which would be the state to go on from
        state = _state_of(training, progress)
        if torchrun.rank() == 0:
            saves.save(progress.step, state)
    if asked is not None:
        raise Interrupted(asked)


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What came of one batch: sums over its images, in whatever process they were."""

    loss: float
    right: float
    images: int


def _step(training: _Training, parts: Sequence[Part]) -> _Done:
    """Forward and backward of this process's parts of a batch; the gradients are those of all."""
    own = sum(len(targets) for _, targets in parts)
    images = int(torchrun.summed(torch.tensor(own, device=device())))
    loss, right = 0.0, 0.0
    for position, part in enumerate(parts):
        waits = position + 1 < len(parts)
        with torchrun.gradients_later(training.shared) if waits else nullcontext():
            # Processes share the mean of their gradients, and parts may differ by an image.
            weight = len(part[1]) * torchrun.count() / images
            answers, its_loss = _part(training, part, weight)
        loss += its_loss * len(part[1])
        right += training.task.right(answers.cpu(), part[1])
    found = torchrun.summed(torch.tensor([loss, right], dtype=torch.float64, device=device()))
    return _Done(loss=float(found[0]), right=float(found[1]), images=images)


def _part(training: _Training, part: Part, weight: float) -> tuple[Tensor, float]:
    """Forward and backward of a part: its answers and its loss, of which `weight` counts."""
    place = device()
    images, targets = part
    if training.mix is not None:
        images, targets = training.mix(*part)
    images = images.to(place, memory_format=torch.channels_last)
    shared_norms = torchrun.count() > 1 and training.config.sync_bn
    with (
        training.autocast(),
        ByProducts(),
        torchrun.SharedStatistics() if shared_norms else nullcontext(),
    ):
        answers = training.shared(images).float()
        loss = training.criterion(answers, targets.to(place))
        loss = training.hooks.adjust_loss(images, answers, loss)
    torch.autograd.backward(loss * weight)
    return answers.detach(), float(loss.detach())


def _refuse_nan(loss: float, step: int, training: _Training) -> None:
    if not math.isfinite(loss):
        part = training.hooks.part
        raise InputError(
            f"{part}: the loss became {loss} at step {step + 1} with learning_rate "
            f"{highest_rate(training.config):g}; {calmer(part)}{_kept(training.saves)}"
        )


def _refuse_bad_weights(training: _Training) -> None:
    refuse_not_finite(training.hooks.part, training.model, _kept(training.saves))


def _kept(saves: Saves | None) -> str:
    """What a message says of the states of a training that went wrong."""
    if saves is None or not any(saves.directory.glob("[0-9]*")):
        return ""
    return f"; the states saved before are kept in {saves.directory}"
