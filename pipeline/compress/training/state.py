"""The state that a training goes on from: taken, kept, and put back."""

from __future__ import annotations

import torch

from pipeline.base import torchrun
from pipeline.base.signals import Interrupted
from pipeline.compress.training.process import agreed
from pipeline.compress.training.resume import Saves, State
from pipeline.compress.training.running import Progress, Training
from pipeline.networks.sanity import refuse_not_finite


def _state_of(training: Training, progress: Progress) -> State:
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


def go_on_from(state: State, training: Training, progress: Progress) -> None:
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


def save_or_stop(training: Training, progress: Progress, asked: int | None) -> None:
    """Save where it is time to, at the end, and where the program was asked to end."""
    saves, last = training.saves, training.steps_per_epoch * training.config.epochs
    due = saves is not None and saves.due(progress.step)
    asked, due = agreed(asked, due)
    if saves is not None and (asked or progress.step == last or due):
        refuse_bad_weights(training)  # which would be the state to go on from
        state = _state_of(training, progress)
        if torchrun.rank() == 0:
            saves.save(progress.step, state)
    if asked is not None:
        raise Interrupted(asked)


def refuse_bad_weights(training: Training) -> None:
    """Refuse weights or statistics that are not finite.

    Raises:
        InputError: names the layer.
    """
    refuse_not_finite(training.hooks.part, training.model, kept(training.saves))


def kept(saves: Saves | None) -> str:
    """What a message says of the states of a training that went wrong."""
    if saves is None or not any(saves.directory.glob("[0-9]*")):
        return ""
    return f"; the states saved before are kept in {saves.directory}"
