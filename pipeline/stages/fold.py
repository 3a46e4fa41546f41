"""The stage that folds batch normalisation into one program."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from pipeline.base.errors import MismatchError, listed, reading
from pipeline.base.record import Share
from pipeline.formats.file_facts import program_macs
from pipeline.networks.checkpoints import WEIGHTS, read_checkpoint
from pipeline.networks.float_layer import FloatLayer
from pipeline.stages import kept_images, kept_layers
from pipeline.stages.context import (
    CORRECTIONS,
    PROGRAM,
    TWIN,
    Context,
    Inputs,
    branched_model,
    deployed,
    fed,
    quantized_graph,
    small_model,
)
from pipeline.stages.exported import CALIBRATION, own_rounding, step_of, with_calibration
from pipeline.stages.stage import (
    COMPARING,
    CORE,
    CUTTING,
    FORMING,
    IMAGES,
    KEEPING,
    PRUNING,
    QUANTIZER,
    QUANTIZING,
    Stage,
    StageFacts,
)
from pipeline.stages.weights import read_forms
from pipeline.tasks.evaluation import predictions
from pipeline.tasks.images.dataset import Dataset


class FoldFacts(StageFacts):
    """What the program leaves in float; what there is to say of its answers, `judge_fold` says.

    Attributes:
        left_in_float: by module.
        int8_share: of the program's multiply-accumulates those in int8; None of a float program.
    """

    left_in_float: tuple[FloatLayer, ...] = ()
    int8_share: Share | None = None

    def details(self) -> list[str]:
        """What is left in float."""
        if not self.left_in_float or self.int8_share is None:
            return []
        modules = listed(layer.module for layer in self.left_in_float)
        return [f"in float: {modules} ({1 - self.int8_share:.2%} of the MACs)"]


def fold(context: Context, inputs: Inputs, out: Path) -> FoldFacts:
    """Fold batch normalisation and write the one program that every format is made from.

    Raises:
        MismatchError: the program does not answer as the trained network does.
    """
    from pipeline.compress.quantization import program, qat
    from pipeline.compress.quantization.fake_quantize import only_round
    from pipeline.compress.quantization.few_bits import take_forms
    from pipeline.compress.quantization.fold import float_program, float_twin, quantized_program
    from pipeline.measure import parity, timing
    from pipeline.measure.left_in_float import left_in_float

    # This stage traces, on one core. What writes the files has seconds to load meanwhile.
    context.children.start_early()
    example = torch.zeros(context.recipe.model.input_shape.batch(2))
    dataset = replace(fed(context).dataset, tests={})
    small = small_model(context, inputs)
    if context.recipe.target.precision == "float":
        network = deployed(context, small).eval()
        expected = _calibration_logits(network, dataset)
        folded = float_program(network, example)
    else:
        trained = quantized_graph(context, small)
        take_forms(trained, read_forms(inputs["qat"]))
        with reading(inputs["qat"] / WEIGHTS):
            qat.load_state(trained, read_checkpoint(inputs["qat"] / WEIGHTS))
        qat.set_training(trained, False)
        only_round(trained)
        expected = _calibration_logits(trained, dataset)
        twin = _without_corrections(trained, inputs["qat"] / CORRECTIONS)
        program.save(float_twin(twin, example), out / TWIN)
        folded = quantized_program(trained, example)
    program.save(folded, out / PROGRAM)
    logits = timing.program_logits(folded, with_calibration(dataset))
    step = step_of(folded, logits[CALIBRATION])
    found = parity.compare_logits(logits, expected, step, context.task.compare)
    own = (logits[CALIBRATION], parity.FOLDED.epsilon)
    rounding = own_rounding(folded, dataset, *own, biases=True)
    limits = parity.widened(parity.FOLDED, rounding, times=2)
    misses = [*parity.finite_misses(logits), *parity.output_misses(found, limits)]
    if misses:
        raise MismatchError(
            f"{context.recipe.name}: the folded program does not answer as the trained network "
            f"does: {'; '.join(misses)}; this is a fault of PocketNest, please report it"
        )
    _keep_for_commands(context, small, folded, step, out)
    if step is None:
        return FoldFacts()
    int8, whole = program_macs(folded)
    return FoldFacts(left_in_float=left_in_float(folded), int8_share=int8 / whole)


def _keep_for_commands(
    context: Context,
    small: nn.Module,
    folded: torch.export.ExportedProgram,
    step: float | None,
    out: Path,
) -> None:
    """Keep what `inspect`, `bundle` and `debug` want to know, wherever the run is moved."""
    from pipeline.measure.left_in_float import tensor_places

    shape, images = context.recipe.model.input_shape, context.dataset.calibration
    found = kept_layers.KeptLayers(
        layers=kept_layers.sized_layers(branched_model(context), small, shape),
        modules=tensor_places(folded),
        step=step,
    )
    kept_layers.write(out / kept_layers.LAYERS_FILE, found)
    if context.recipe.target.precision == "float":
        return  # nothing of it is compared layer by layer
    rows = kept_images.first_rows(len(images), kept_images.MOST)
    kept = {kept_images.CALIBRATION: kept_images.kept(images, rows)}
    kept_images.write(out / kept_images.KEPT_IMAGES, kept)


def _without_corrections(trained: fx.GraphModule, file: Path) -> fx.GraphModule:
    """A graph as it was before biases were corrected; itself where none were."""
    if not file.exists():
        return trained
    graph = copy.deepcopy(trained)
    with reading(file), torch.no_grad():
        state = graph.state_dict()
        for name, added in read_checkpoint(file).items():
            state[name].sub_(added)
    return graph


def _calibration_logits(model: nn.Module, dataset: Dataset) -> dict[str, Tensor]:
    return {CALIBRATION: predictions(model, dataset.calibration, dataset)}


STAGE = Stage(
    name="fold",
    make=fold,
    facts=FoldFacts,
    after=("prune", "sparsify", "qat"),
    reads=("task", "target.precision", "target.input", "threads"),
    code=(
        *(*CORE, *PRUNING, *QUANTIZER, *COMPARING, *KEEPING),
        *("formats/file_facts.py", "measure/left_in_float.py"),
        *("stages/exported.py", "stages/fold.py"),
        *FORMING,
    ),
    packages=(*IMAGES, *CUTTING, *QUANTIZING),
)
