"""The stage of quantization-aware training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, fx

from pipeline.base.errors import listed
from pipeline.base.record import Positive
from pipeline.compress.pruning.sparsify import keep_zeros, zero_masks
from pipeline.compress.quantization.chosen import NotNegative
from pipeline.compress.training.hooks import Hooks
from pipeline.compress.training.loop import CURVE
from pipeline.networks.checkpoints import WEIGHTS, save_checkpoint
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.weight_forms import WeightForm
from pipeline.stages import weights
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
    FORMING,
    IMAGES,
    PRUNING,
    QUANTIZER,
    QUANTIZING,
    Stage,
    StageFacts,
)
from pipeline.stages.weight_sizes import LayerForm


class QatFacts(StageFacts):
    """What calibration showed.

    Attributes:
        silent: layers that are zero for every calibration image.
        forms: how many layers have weights of each form; none where all are int8.
        divergence: of the answers to the calibration images, before the training, with all weights
            rounded to these forms, nats an image; None where no forms were chosen.
    """

    silent: tuple[str, ...]
    forms: dict[WeightForm, Positive] = Field(default_factory=dict)
    divergence: NotNegative | None = None

    def details(self) -> list[str]:
        """The silent layers, and the forms of the others."""
        told = [f"zero for every calibration image: {listed(self.silent)}"] if self.silent else []
        forms = [f"{count} in {form}" for form, count in self.forms.items()]
        return told + ([f"layers' weights: {', '.join(forms)}"] if forms else [])


def quantize(context: Context, inputs: Inputs, out: Path) -> QatFacts:
    """Quantization-aware training from calibrated ranges."""
    from pipeline.compress.quantization import qat

    recipe = context.recipe
    torch.manual_seed(recipe.seed)
    small = small_model(context, inputs)
    dense = context.family.structure(small).dense
    graph = quantized_graph(context, small)
    moved, forms, divergence = _calibrated(context, inputs, graph)
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
    if forms:
        weights.write_forms(out, forms)
    graph.cpu()
    qat.set_training(graph, False)
    qat.refuse_bad_grids(graph)
    save_checkpoint(graph.state_dict(), out / WEIGHTS, None)
    if moved and recipe.qat.train.epochs == 0:  # a training moves what was corrected, too
        save_checkpoint(moved, out / CORRECTIONS, None)
    return QatFacts(silent=tuple(silent), forms=_counted(forms), divergence=divergence)


def _counted(forms: Sequence[LayerForm]) -> dict[WeightForm, int]:
    return dict(Counter(one.form for one in forms))


def _calibrated(
    context: Context, inputs: Inputs, graph: fx.GraphModule
) -> tuple[dict[str, Tensor], tuple[LayerForm, ...], float | None]:
    """Set the grids of a graph from the calibration images, and the forms of its weights.

    Returns:
        What was added to its biases, the forms, and what `weights.forms_of` says of them; no forms
        where all weights are int8.
    """
    from pipeline.compress.quantization import qat
    from pipeline.compress.quantization.adaptive import round_all_adaptively
    from pipeline.compress.quantization.bias_correction import InputMeans, correct_biases
    from pipeline.compress.quantization.equalization import equalize
    from pipeline.compress.quantization.few_bits import take_forms
    from pipeline.compress.quantization.ranges import Ranges

    config = context.recipe.qat
    ranges = Ranges(kind=config.ranges, percentile=config.percentile)

    def images() -> Iterator[Tensor]:
        return calibration_batches(context)

    if config.equalize:
        qat.without_rounding(graph)
        equalize(graph, images)
    forms: tuple[LayerForm, ...] = ()
    divergence = None
    if config.weights.few_bits:
        qat.without_rounding(graph)
        forms, divergence = weights.forms_of(context, inputs, graph)
    means = InputMeans(graph) if config.correct_bias else None
    qat.calibrate(graph, images, ranges, means)
    take_forms(graph, {one.costs.layer: one.form for one in forms})
    moved: dict[str, Tensor] = {}
    if forms and config.train.epochs == 0 and config.weights.rounding == "adaptive":
        moved = round_all_adaptively(graph, images)
    qat.refuse_bad_grids(graph)
    corrected = {} if means is None else correct_biases(graph, means, moved)
    return moved | corrected, forms, divergence


def _quantizes(recipe: Recipe) -> bool:
    return recipe.target.precision == "int8"


def _format_that_limits(recipe: Recipe) -> tuple[str, ...]:
    """The target's format, where forms are chosen by how many bytes they take in it."""
    return ("target.format",) if recipe.qat.weights.chosen_by_size else ()


STAGE = Stage(
    name="qat",
    make=quantize,
    facts=QatFacts,
    after=("train", "prune", "sparsify", "sensitivity"),
    reads=("qat", "target.input", "seed", "threads"),
    also_reads=_format_that_limits,
    code=(*CORE, *PRUNING, *QUANTIZER, *FORMING, "stages/fitting.py", "stages/qat.py"),
    needed=_quantizes,
    packages=(*IMAGES, *CUTTING, *QUANTIZING),
    on_device=True,
    shared=True,
)
