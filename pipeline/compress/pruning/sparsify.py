"""Sparsify: weights set to zero one by one, in blocks or N of M, while the network trains.

The masks come from neural-compressor's pruner. Its own entry points (`prepare_compression`,
`prepare_pruning`) hook themselves into the forward pass and replace `torch.save`; the pruner
itself is called here, from the hooks of the training loop:

    sparsifier = Sparsifier(model, config, steps, structure.dense)
    hooks = Hooks(
        before_step=sparsifier.before_step,
        after_backward=sparsifier.after_backward,
        after_step=sparsifier.after_step,
    )
    fit(model, dataset, config.train, seed, hooks)
    sparsifier.finish()

Zeros are worth having in convolutions alone, and not in all of them. Left out are those that the
network's family names (`Structure.dense`), and depthwise ones: their few weights are all a channel
has (in deploy form they are constants).

Importing neural-compressor takes seconds, so that only making a Sparsifier does. It loads neither
TensorFlow nor coremltools.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.base.torchrun import device
from pipeline.recipe.compression import SparsifyConfig

_MOST_CUTS = 32
"""A cut sorts every weight, and costs several steps of a large network."""
_LEAST_CUTS = 2
_NAMED_AT_MOST = 5

_GRADIENT_FLOOR = 1e-30
"""Gradient of a weight that has none, for scores of weight x gradient. A 3 x 3 kernel on one pixel
has eight such weights, and the pruner takes all of the same score together."""
_POSITION_STEP = 1e-12
"""By how much a score counts more, relatively, than an equal one of the input before. Too little
to change the order of others: scores that float32 tells apart differ by 6e-8."""
_UPWARDS = 1 + 1e-9
"""The pruner cuts counts down to whole numbers: 0.29 x 100 would be 28."""


def _eligible(name: str, weight: Tensor, dense: Sequence[str]) -> bool:
    """Whether a parameter of a network in prunable form, deploy form or QAT may hold zeros."""
    convolves = weight.dim() == 4 and weight.shape[1] > 1
    return convolves and not any(name.startswith(f"{module}.") for module in dense)


class _CubicSchedule:
    """Share of zeros after each cut: fast while much is redundant, slow towards the end.

    From Zhu and Gupta 2017 (https://arxiv.org/abs/1710.01878); the library has only schedules
    that begin slowly or miss the last share by a rounding error.
    """

    def update_sparsity_ratio(
        self, target: float, cut: int, cuts: int, masks: object, before: float
    ) -> float:
        """The share after cut number `cut` of `cuts`, in the words of the library."""
        return target * (1 - (1 - cut / cuts) ** 3)


class Sparsifier:
    """Sets weights of a network to zero in the course of one training.

    Attributes:
        left_out: names of the convolutions and linear layers that stay dense.
    """

    left_out: tuple[str, ...]

    def __init__(
        self, model: nn.Module, config: SparsifyConfig, steps: int, dense: Sequence[str]
    ) -> None:
        """Choose the layers and make the pruner.

        Args:
            model: in prunable form; moved to where it will be trained.
            config: of the recipe.
            steps: of the whole training.
            dense: paths of modules that stay as they are.

        Raises:
            InputError: too few steps for the schedule, or layers that the pattern does not fit.
        """
        begin, self._last, every = _cut_steps(config, steps)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        self._layers = {
            name: layer
            for name, layer in layers.items()
            if isinstance(layer, nn.Conv2d) and _eligible(f"{name}.weight", layer.weight, dense)
        }
        self.left_out = tuple(name for name in layers if name not in self._layers)
        _refuse_misfits(config.pattern, self._layers)
        self._steps, self._step = steps, 0
        model.to(device())  # the pruner makes its masks where the weights are
        self._pruner = _pruner(config, self._layers, (begin, self._last, every))

    def before_step(self, step: int, steps: int) -> None:
        """Make the cut that belongs to `step`, if one does.

        Raises:
            ValueError: `steps` is not what the schedule was made for.
        """
        if steps != self._steps:
            raise ValueError(f"got {steps} training steps; the schedule was made for {self._steps}")
        self._step = step
        self._pruner.on_step_begin(step)
        # Layers that a cut filled up would keep their masks at the next, mixed up: the library
        # takes them for masks in its own layout.
        self._pruner.pattern.keep_mask_layers.clear()

    def after_backward(self) -> None:
        """Take in the gradients of a step, as long as there are cuts to come."""
        if self._step < self._last:
            self._pruner.on_before_optimizer_step()

    def after_step(self) -> None:
        """Set the weights that were cut to zero again; the optimizer has moved them."""
        self._pruner.on_after_optimizer_step()

    def state(self) -> dict[str, Any]:
        """All that later cuts depend on: masks, scores and counters; plain values and tensors."""
        counters = {n: v for n, v in vars(self._pruner).items() if type(v) in (int, float)}
        scores = self._pruner.criterion.scores
        masks = self._pruner.masks
        return {"step": self._step, "masks": masks, "scores": scores, "counters": counters}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, on a Sparsifier made of the same settings."""
        place, self._step = device(), state["step"]
        for name, value in state["counters"].items():
            setattr(self._pruner, name, value)
        self._pruner.masks = {name: mask.to(place) for name, mask in state["masks"].items()}
        scores = {name: score.to(place) for name, score in state["scores"].items()}
        self._pruner.criterion.scores = scores

    def finish(self) -> None:
        """Apply the masks for good. The network was never more than a plain module.

        Raises:
            RuntimeError: the training ended before the last cut.
        """
        if self._step < self._last:
            raise RuntimeError(
                f"sparsify: training ended after step {self._step + 1} of {self._steps}, before "
                f"the last cut at step {self._last + 1}"
            )
        with torch.no_grad():
            for name, layer in self._layers.items():
                # Not a product: that makes negative zeros.
                layer.weight.masked_fill_(~self._pruner.masks[name], 0.0)


def _needs_gradients(config: SparsifyConfig) -> bool:
    return config.criterion != "magnitude"


def _cut_steps(config: SparsifyConfig, steps: int) -> tuple[int, int, int]:
    """When to cut: the step the schedule starts from, that of the last cut, and the interval.

    The first cut comes one interval after the start; where start and last are the same, the only
    one comes then.
    """
    least = 2 if _needs_gradients(config) else 1  # gradients are there after the first step
    given = f"sparsify.train.epochs: got {config.train.epochs:g}, which makes {steps} steps"
    if steps < least:
        raise InputError(
            f"{given}; {config.criterion} needs at least {least}: raise sparsify.train.epochs"
        )
    last = max(least - 1, min(math.ceil(config.end * steps), steps - 1))
    if config.start == config.end:
        return last, last, 1
    begin = math.ceil(config.start * steps)
    if last - begin < _LEAST_CUTS:
        raise InputError(
            f"{given}, {max(0, last - begin)} of them between sparsify.start {config.start:g} and "
            f"sparsify.end {config.end:g}; weights that go gradually need at least {_LEAST_CUTS}: "
            "raise sparsify.train.epochs, or set sparsify.start to sparsify.end for a single cut"
        )
    every = math.ceil((last - begin) / _MOST_CUTS)
    return last - (last - begin) // every * every, last, every


def _pattern_shape(pattern: str) -> tuple[int, int]:
    """Output channels and input channels of the weights that the pattern takes together."""
    if ":" in pattern:
        return 1, int(pattern.split(":")[1])
    rows, columns = map(int, pattern.split("x"))
    return rows, columns


def _refuse_misfits(pattern: str, layers: dict[str, nn.Conv2d]) -> None:
    """Stop where a pattern would be cut off by a layer's edge, or go over the edge of a group.

    The library would leave such layers dense and warn, or fall over them, by criterion.
    """
    rows, columns = _pattern_shape(pattern)
    misfits = [
        f"{name} ({layer.out_channels // layer.groups} x {layer.weight.shape[1]})"
        for name, layer in layers.items()
        if layer.out_channels // layer.groups % rows or layer.weight.shape[1] % columns
    ]
    if misfits:
        rest = len(misfits) - _NAMED_AT_MOST
        names = ", ".join(misfits[:_NAMED_AT_MOST]) + (f" and {rest} more" if rest > 0 else "")
        raise InputError(
            f"sparsify.pattern: got {pattern}, which needs output channels x input channels that "
            f"are multiples of {rows} x {columns}, per group; not so are {names}; choose another "
            f"pattern, such as 1x1, or set prune.round_to to a multiple of "
            f"{math.lcm(rows, columns)} where pruning made these widths"
        )


def _pruner(
    config: SparsifyConfig, layers: dict[str, nn.Conv2d], cut_steps: tuple[int, int, int]
) -> Any:
    """The library's pruner of `layers`."""
    from neural_compressor.compression.pruner.pruners import get_pruner
    from neural_compressor.compression.pruner.utils import process_config
    from neural_compressor.config import WeightPruningConfig

    # Importing the library gives it a handler of its own; at every cut it has a line per layer.
    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    begin, last, every = cut_steps
    (settings,) = process_config(
        WeightPruningConfig(
            [{}],  # the library writes into it: its default would hold the first one's settings
            target_sparsity=config.sparsity,
            pruning_type=config.criterion,
            pattern=config.pattern,
            start_step=begin,
            end_step=last,
            pruning_frequency=every,
            pruning_scope="global" if config.scope == "network" else "local",
        )
    )
    share = config.sparsity
    if ":" in config.pattern:
        zeros, block = map(int, config.pattern.split(":"))
        share = zeros / block  # what the recipe says may be rounded
    settings["target_sparsity"] = share * _UPWARDS
    # No layer may lose all its weights, however little they count among all of the network.
    most = 1.0 if ":" in config.pattern else max(0.98, (1 + share) / 2)
    settings["max_sparsity_ratio_per_op"] = most * _UPWARDS
    pruner = get_pruner(settings, layers)
    pruner.scheduler = _CubicSchedule()
    _count_once(pruner.pattern)
    _break_ties(pruner.pattern, layers, _pattern_shape(config.pattern)[1])
    return pruner


def _count_once(pattern: Any) -> None:
    """Have the zeros of a mask counted once, in place of once for every layer of the network.

    A cut of ResNeSt-50 took 29 s otherwise, nearly all of it this.
    """
    count = pattern.get_sparsity_ratio_each_layer
    known: dict[str, tuple[Tensor, Any]] = {}

    def counted(masks: dict[str, Tensor]) -> tuple[dict[str, Any], Any]:
        for name, mask in masks.items():
            if name not in known or known[name][0] is not mask:  # masks are replaced, not changed
                _, counts = count({name: mask})
                known[name] = mask, counts
        layers = {name: known[name][1] for name in masks}
        zeros = sum(layer.zero_cnt for layer in layers.values())
        weights = sum(layer.total_cnt for layer in layers.values())
        record = type(next(iter(layers.values())))
        return layers, record(zeros, weights, zeros / weights)

    pattern.get_sparsity_ratio_each_layer = counted


def _break_ties(pattern: Any, layers: dict[str, nn.Conv2d], inputs: int) -> None:
    """Make scores differ that are compared: equal ones fall together, more than were asked for.

    In a random ResNeSt-50 two of its six million blocks of 2:4 lost three weights otherwise.
    """
    get_masks = pattern.get_masks

    def distinct(name: str, score: Tensor) -> Tensor:
        floor = layers[name].weight.detach().abs().double() * _GRADIENT_FLOOR
        raised: Tensor
        if hasattr(pattern, "reduce_score"):  # one score per block
            raised = score.double() + pattern.reduce_score(floor, name, force=True)
        else:
            position = torch.arange(floor.shape[1], dtype=floor.dtype, device=floor.device) % inputs
            raised = (score.double() + floor) * (1 + _POSITION_STEP * position[:, None, None])
        return raised

    def with_distinct(scores: dict[str, Tensor], share: float, masks: object) -> object:
        return get_masks(
            {name: distinct(name, score) for name, score in scores.items()}, share, masks
        )

    pattern.get_masks = with_distinct


def sparsity(model: nn.Module, dense: Sequence[str]) -> float:
    """Share of exact zeros among the weights that could be zero, 0 to 1.

    Those are the weights of all convolutions but the ones that are left out (see above), of a
    network in prunable form, in deploy form, or of a graph from `pipeline.qat.prepare`.
    """
    weights = [p for name, p in model.named_parameters() if _eligible(name, p, dense)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights) if weights else 0.0


def zero_masks(model: nn.Module, dense: Sequence[str]) -> dict[str, Tensor]:
    """Where a network has weights to keep at zero.

    Args:
        model: in prunable form, in deploy form, or a graph from `pipeline.qat.prepare`.
        dense: as of `Sparsifier`.

    Returns:
        For every weight that could be zero and has exact zeros, by its name among the parameters
        of `model`: a boolean tensor of its shape and on its device, false where it is zero.
    """
    found = model.named_parameters()
    weights = {name: p.detach() for name, p in found if _eligible(name, p, dense)}
    return {name: weight != 0 for name, weight in weights.items() if (weight == 0).any()}


def keep_zeros(model: nn.Module, masks: dict[str, Tensor]) -> Callable[[], None]:
    """Return a function that sets weights of `model` to zero again, to call after every step.

    Args:
        model: what `masks` were taken from; by the first call it is where `fit` trains it.
        masks: of `zero_masks`.

    Raises:
        KeyError: a mask of a parameter that the network does not have.
    """
    parameters = dict(model.named_parameters())
    pairs = [(parameters[name], (~mask).to(device())) for name, mask in masks.items()]

    def reset() -> None:
        with torch.no_grad():
            for weight, dropped in pairs:
                weight.masked_fill_(dropped, 0.0)

    return reset
