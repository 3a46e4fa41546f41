"""One training loop for every stage that trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.base import torchrun
from pipeline.base.errors import InputError
from pipeline.base.memory import keep_freed_memory
from pipeline.base.passing import is_passing
from pipeline.base.profile import span
from pipeline.base.signals import deferred
from pipeline.base.torchrun import device
from pipeline.compress.training.batch import forward_backward
from pipeline.compress.training.hooks import Hooks, Step
from pipeline.compress.training.process import autocast, share_of
from pipeline.compress.training.regularize import average_of
from pipeline.compress.training.resume import Saves
from pipeline.compress.training.running import Progress, Training
from pipeline.compress.training.schedule import (
    TrainingPart,
    at_size,
    batches_per_epoch,
    highest_rate,
    learning_rate_factor,
    optimizer_for,
)
from pipeline.compress.training.state import go_on_from, kept, refuse_bad_weights, save_or_stop
from pipeline.networks.sanity import calmer, refuse_dead
from pipeline.recipe.training import TrainConfig
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset

if TYPE_CHECKING:
    from pipeline.tasks.task import TaskModule

CURVE = "curve.json"
"""Name of the file in which a stage keeps its learning curve."""


@span("train", "epochs")
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
    training = _training(model, dataset, config, seed, hooks or Hooks(), saves, task)
    progress = _progress(training)
    training = replace(training, shared=torchrun.sharing_gradients(model))
    with deferred() as asked:
        for _ in range(len(progress.curve), config.epochs):
            _epoch(training, progress, asked)
    if training.average is not None and config.epochs > 0:
        model.load_state_dict(training.average.module.state_dict())
    torchrun.take_buffers_of_first(model)
    refuse_bad_weights(training)
    refuse_dead(training.hooks.part, model)
    training.hooks.set_training(model, False)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return progress.curve


def _training(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    seed: int,
    hooks: Hooks,
    saves: Saves | None,
    task: TaskModule,
) -> Training:
    """All that stays the same, the network on its device."""
    share = share_of(config, hooks.part)
    # Convolutions run channels-last inside on every device: given so, nothing is reordered.
    model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Training(
        model=model,
        shared=model,
        dataset=dataset,
        config=config,
        hooks=hooks,
        share=share,
        optimizer=optimizer_for(model, config),
        task=task,
        criterion=task.loss(config, dataset.train.labels),
        generator=torch.Generator().manual_seed(seed),
        steps_per_epoch=batches_per_epoch(len(dataset.train), config.batch_size, share.parts),
        autocast=autocast(model, config),
        mix=task.mixer(config, len(task.outputs(dataset.classes))),
        average=average_of(model, config),
        saves=saves,
    )


def _progress(training: Training) -> Progress:
    """From the beginning, or from the state that was saved last."""
    progress, saves = Progress(), training.saves
    if saves is None or (state := saves.latest()) is None:
        return progress
    try:
        go_on_from(state, training, progress)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_passing(error):
            raise
        raise InputError(
            f"{saves.directory}: holds no state of this training "
            f"({' '.join(str(error).split())[:200]}); remove it and run the same command again"
        ) from error
    return progress


def _epoch(training: Training, progress: Progress, asked: Callable[[], int | None]) -> None:
    """Train over every image once, or over those of an epoch that are left."""
    config, hooks = training.config, training.hooks
    steps, epoch = training.steps_per_epoch * config.epochs, len(progress.curve)
    left = _batches_left(training, progress)
    while parts := list(islice(left, training.share.number)):
        _take_step(training, progress, parts)
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
        save_or_stop(training, progress, asked())
    progress.curve.append(
        {
            "epoch": epoch + 1,
            "loss": progress.loss / progress.seen,
            "accuracy": progress.right / progress.seen,
            "learning_rate": progress.rate,
        }
    )


def _batches_left(training: Training, progress: Progress) -> Iterator[TrainingPart]:
    """What this process takes of the batches of an epoch, which is begun or gone on with."""
    config = training.config
    begun = progress.step - len(progress.curve) * training.steps_per_epoch
    if begun == 0:
        images_of_all = len(training.dataset.train)
        progress.order = torch.randperm(images_of_all, generator=training.generator)
        progress.loss, progress.right, progress.seen = 0.0, 0.0, 0
    training.hooks.set_training(training.model, True)
    return batches(
        training.dataset.train,
        config.batch_size,
        training.dataset,
        augment_config=config.augment,
        generator=training.generator,
        order=progress.order[begun * config.batch_size :],
        share=training.share,
        place=device(),  # a GPU augments, and is sent a quarter of the bytes
    )


def _take_step(training: Training, progress: Progress, parts: Sequence[TrainingPart]) -> None:
    """Train on one batch."""
    config, hooks, optimizer = training.config, training.hooks, training.optimizer
    per_epoch, step = training.steps_per_epoch, progress.step
    steps, warmup = per_epoch * config.epochs, per_epoch * config.warmup_epochs
    milestones = [per_epoch * epoch for epoch in config.milestones]
    hooks.before_step(step, steps)
    progress.rate = highest_rate(config) * learning_rate_factor(step, steps, warmup, milestones)
    for group in optimizer.param_groups:
        group["lr"] = progress.rate
    done = forward_backward(training, at_size(parts, config, (step, steps), training.generator))
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


def _refuse_nan(loss: float, step: int, training: Training) -> None:
    if not math.isfinite(loss):
        part = training.hooks.part
        raise InputError(
            f"{part}: the loss became {loss} at step {step + 1} with learning_rate "
            f"{highest_rate(training.config):g}; {calmer(part)}{kept(training.saves)}"
        )
