"""The stage of quantization-aware training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, fx

from pipeline.base.errors import listed
from pipeline.compress.pruning.sparsify import keep_zeros, zero_masks
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.loop import CURVE
from pipeline.networks.checkpoints import WEIGHTS, save_checkpoint
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import (
    CORRECTIONS,
    Context,
    Inputs,
    calibration_batches,
    fed,
    quantized_graph,
    small_model,
    write_json,
)
from pipeline.stages.fitting import taught, trained
from pipeline.stages.stage import (
    CORE,
    CUTTING,
    IMAGES,
    PRUNING,
    QUANTIZER,
    QUANTIZING,
    Stage,
    StageFacts,
)


class QatFacts(StageFacts):
    """What calibration showed.

    Attributes:
        silent: layers that are zero for every calibration image.
    """

    silent: tuple[str, ...]

    def details(self) -> list[str]:
        """The silent layers."""
        return [f"zero for every calibration image: {listed(self.silent)}"] if self.silent else []


def quantize(context: Context, inputs: Inputs, out: Path) -> QatFacts:
    """Quantization-aware training from calibrated ranges."""
    from pipeline.compress.quantization import qat

    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    small = small_model(context, inputs)
    dense = context.family.structure(small).dense
    graph = quantized_graph(context, small)
    moved = _calibrated(context, graph)
    silent = qat.silent_layers(graph)
    qat.merge_rounding(graph)
    schedule = qat.Schedule(graph, recipe.qat.milestones)
    zeros = zero_masks(graph, dense) if recipe.sparsify is not None else {}
    with taught(context, inputs, graph, recipe.qat.distill) as adjust_loss:
        hooks = Hooks(
            part="qat.train",
            before_step=schedule.before_step,
            after_step=keep_zeros(graph, zeros),
            adjust_loss=adjust_loss,
            set_training=schedule.set_training,
            load=qat.load_state,
        )
        curve = trained(
            fed(context), graph, "quantize", recipe.qat.train, hooks, lambda: f"{schedule.phase}, "
        )
    write_json(out / CURVE, curve)
    graph.cpu()
    qat.set_training(graph, False)
    qat.refuse_bad_grids(graph)
    save_checkpoint(graph.state_dict(), out / WEIGHTS, None)
    if moved and recipe.qat.train.epochs == 0:  # a training moves what was corrected, too
        save_checkpoint(moved, out / CORRECTIONS, None)
    return QatFacts(silent=tuple(silent))


def _calibrated(context: Context, graph: fx.GraphModule) -> dict[str, Tensor]:
    """Set the grids of a graph from the calibration images; what was added to its biases."""
    from pipeline.compress.quantization import qat
    from pipeline.compress.quantization.bias_correction import InputMeans, correct_biases
    from pipeline.compress.quantization.equalization import equalize
    from pipeline.compress.quantization.ranges import Ranges

    config = context.recipe.qat
    ranges = Ranges(kind=config.ranges, percentile=config.percentile)

    def images() -> Iterator[Tensor]:
        return calibration_batches(context)

    if config.equalize:
        qat.without_rounding(graph)
        equalize(graph, images)
    means = InputMeans(graph) if config.correct_bias else None
    qat.calibrate(graph, images, ranges, means)
    qat.refuse_bad_grids(graph)
    return {} if means is None else correct_biases(graph, means)


def _quantizes(recipe: Recipe) -> bool:
    return recipe.target.precision == "int8"


STAGE = Stage(
    name="qat",
    make=quantize,
    facts=QatFacts,
    after=("train", "prune", "sparsify"),
    reads=("qat", "target.input", "seed", "threads"),
    code=(*CORE, *PRUNING, *QUANTIZER, "stages/fitting.py", "stages/qat.py"),
    needed=_quantizes,
    packages=(*IMAGES, *CUTTING, *QUANTIZING),
    on_device=True,
    shared=True,
)
