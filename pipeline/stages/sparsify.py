"""The stage that sets weights to zero."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import torchrun
from pipeline.base.record import Share
from pipeline.compress.pruning.sparsify import Sparsifier, sparsity
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.loop import CURVE
from pipeline.compress.training.schedule import batches_per_epoch
from pipeline.networks.checkpoints import WEIGHTS, save_checkpoint
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import Context, Inputs, pruned_model, write_json
from pipeline.stages.fitting import taught, trained
from pipeline.stages.stage import CORE, CUTTING, IMAGES, PRUNING, Stage, StageFacts


class SparsifyFacts(StageFacts):
    """The network as sparsifying left it.

    Attributes:
        sparsity: share of its weights that are zero.
        left_out: layers whose weights were not set to zero.
    """

    sparsity: Share
    left_out: tuple[str, ...]

    def details(self) -> list[str]:
        """The share of zeros."""
        return [f"{self.sparsity:.1%} of the weights zero"]


def sparsify(context: Context, inputs: Inputs, out: Path) -> SparsifyFacts:
    """Set weights to zero while training goes on."""
    config = context.recipe.sparsify
    assert config is not None
    model = pruned_model(context, inputs, "prune")
    parts = torchrun.count() * config.train.accumulate
    steps = batches_per_epoch(len(context.dataset.train), config.train.batch_size, parts)
    dense = context.family.structure(model).dense
    sparsifier = Sparsifier(model, config, steps * config.train.epochs, dense)
    with taught(context, inputs, model, config.distill) as adjust_loss:
        hooks = Hooks(
            part="sparsify.train",
            before_step=sparsifier.before_step,
            after_backward=sparsifier.after_backward,
            after_step=sparsifier.after_step,
            adjust_loss=adjust_loss,
            state=sparsifier.state,
            set_state=sparsifier.set_state,
        )
        curve = trained(context, model, "sparsify", config.train, hooks)
    sparsifier.finish()
    write_json(out / CURVE, curve)
    model = model.cpu().eval()
    save_checkpoint(model, out / WEIGHTS, None)
    return SparsifyFacts(
        sparsity=sparsity(model, dense),
        left_out=tuple(sparsifier.left_out),
    )


def _sparsifies(recipe: Recipe) -> bool:
    return recipe.sparsify is not None


STAGE = Stage(
    name="sparsify",
    make=sparsify,
    facts=SparsifyFacts,
    after=("train", "prune"),
    reads=("sparsify", "seed", "threads"),
    code=(*CORE, *PRUNING, "stages/fitting.py", "stages/sparsify.py"),
    needed=_sparsifies,
    packages=(*IMAGES, *CUTTING, "neural-compressor"),
    in_bfloat16=lambda recipe: (
        recipe.sparsify is not None and recipe.sparsify.train.precision == "auto"
    ),
    on_device=True,
    shared=True,
)
