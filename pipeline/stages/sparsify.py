"""The stage that sets weights to zero."""

from __future__ import annotations

from pathlib import Path

from pipeline.base import torchrun
from pipeline.base.errors import reading
from pipeline.base.store import Facts
from pipeline.compress.pruning.prune import take_shapes
from pipeline.compress.pruning.sparsify import Sparsifier, sparsity
from pipeline.compress.training.loop import CURVE, Hooks
from pipeline.compress.training.schedule import batches_per_epoch
from pipeline.networks.checkpoints import WEIGHTS, read_checkpoint, save_checkpoint
from pipeline.stages.context import Context, Inputs, branched_model, first_top1, write_json
from pipeline.stages.fitting import taught, trained
from pipeline.tasks.classification import evaluate


def sparsify(context: Context, inputs: Inputs, out: Path) -> Facts:
    """Set weights to zero while training goes on."""
    config = context.recipe.sparsify
    assert config is not None
    model = branched_model(context)
    with reading(inputs["prune"] / WEIGHTS):
        take_shapes(model, read_checkpoint(inputs["prune"] / WEIGHTS))
    parts = torchrun.count() * config.train.accumulate
    steps = batches_per_epoch(len(context.dataset.train), config.train.batch_size, parts)
    sparsifier = Sparsifier(model, config, steps * config.train.epochs)
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
    return {
        "sparsity": sparsity(model),
        "left_out": list(sparsifier.left_out),
        "top1": first_top1(evaluate(model, context.dataset, "sparsify")),
    }
