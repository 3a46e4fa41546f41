"""Training to sparse weights, small."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pipeline.compress.pruning import sparsify
from pipeline.compress.pruning.sparsify import Sparsifier
from pipeline.compress.training.hooks import Hooks
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.network import ResNeSt
from pipeline.recipe.compression import SparsifyConfig
from pipeline.recipe.training import TrainConfig
from tests.making.networks import SHALLOW, dataset, small, structure
from tests.making.training import fit

STEPS = 12
TRAIN = TrainConfig(epochs=STEPS // 2, batch_size=8, learning_rate=0.02)
Recorder = Callable[[int, ResNeSt], None]


def config(**fields: Any) -> SparsifyConfig:
    return SparsifyConfig(**{"train": TRAIN} | fields)


def network(layers: tuple[int, ...] = SHALLOW, **overrides: Any) -> ResNeSt:
    return branch_form(small(**{"layers": layers} | overrides)).train()


DENSE = structure(network((1, 2, 1, 1))).dense
"""Of every network here, but those with a small stem."""


def train(
    model: ResNeSt, settings: SparsifyConfig, seed: int = 0, watch: Recorder | None = None
) -> Sparsifier:
    sparsifier = Sparsifier(model, settings, STEPS, DENSE)

    def after_step() -> None:
        sparsifier.after_step()
        if watch is not None:
            watch(sparsifier._step, model)

    hooks = Hooks(
        before_step=sparsifier.before_step,
        after_backward=sparsifier.after_backward,
        after_step=after_step,
    )
    fit(model, dataset(), settings.train, seed, hooks)
    sparsifier.finish()
    return sparsifier


@functools.cache
def _sparse(layers: tuple[int, ...], fields: tuple[tuple[str, Any], ...]) -> ResNeSt:
    model = network(layers)
    train(model, config(**dict(fields)))
    return model


def sparse(layers: tuple[int, ...] = SHALLOW, **fields: Any) -> ResNeSt:
    """A network trained to zeros; shared, not to be changed."""
    return _sparse(layers, tuple(sorted(fields.items())))


def eligible(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if sparsify._eligible(n, p, DENSE)}
