"""What every layer of a network holds, does and costs, before and after pruning."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from pipeline.base.errors import reading
from pipeline.compress.pruning.prune import take_shapes
from pipeline.compress.quantization import program
from pipeline.formats.format import LayersModule
from pipeline.measure.layers import layers_of
from pipeline.networks.checkpoints import WEIGHTS, read_checkpoint
from pipeline.networks.families import family_of
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.weight_forms import WeightForm
from pipeline.stages import kept_layers
from pipeline.stages.context import PROGRAM
from pipeline.stages.finished_run import Finished
from pipeline.stages.kept_layers import LAYERS_FILE, LayerSize, SizedLayer, sized_layers
from pipeline.stages.presets import with_preset
from pipeline.tasks.tasks import task_of

REST = "(other operations)"


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer; what is not a convolution or linear layer stands together for its block.

    Attributes:
        name: in prunable form.
        kernel: such as `3x3`.
        groups: into which the channels are divided.
        before: in the network as it was trained; None for other operations.
        after: in the pruned network; None for a recipe that was not run.
        milliseconds: of the file's layers, median; None where no file was timed.
        share: of the sum of all layers' times.
        form: of its weights; None where the run did not give layers fewer bits than 8.
    """

    name: str
    kernel: str = ""
    groups: int | None = None
    before: LayerSize | None = None
    after: LayerSize | None = None
    milliseconds: float | None = None
    share: float | None = None
    form: WeightForm | None = None


def table_of_recipe(recipe: Recipe) -> list[LayerCost]:
    """The layers of the network that a recipe starts from.

    Raises:
        InputError: the classes of its data cannot be read, whose number decides the outputs.
    """
    recipe, _ = with_preset(recipe)
    whole = _prunable(recipe, task_of(recipe).class_names(recipe.data))
    return _rows(sized_layers(whole, None, recipe.model.input_shape))


def table_of_run(run: Finished, rounds: int) -> list[LayerCost]:
    """The layers of a finished run, each with its share of the file's time on this machine.

    Args:
        run: one target's.
        rounds: timed rounds; the medians count.

    Raises:
        InputError: of an older run, a stage's result is gone from the store.
    """
    kept = kept_layers.read(run.directory / LAYERS_FILE)
    rows = _with_forms(_rows(_sized(run) if kept is None else kept.layers), run)
    if run.recipe.target.precision == "float" or run.format.module().cannot_time() is not None:
        return rows
    if run.format.layers is None:
        return rows
    modules = _modules(run) if kept is None else kept.modules
    with reading(run.file):
        return _with_times(rows, _times(run, run.format.layers(), modules, rounds))


def _sized(run: Finished) -> tuple[SizedLayer, ...]:
    """The layers of an older run, from the weights in its store."""
    small = _prunable(run.recipe, run.classes)
    weights = run.stage("prune" if run.recipe.sparsify is None else "sparsify", WEIGHTS)
    with reading(weights):
        take_shapes(small, read_checkpoint(weights))
    return sized_layers(_prunable(run.recipe, run.classes), small, run.shape)


def _modules(run: Finished) -> dict[str, str]:
    """The module of every quantized tensor of an older run, from the program in its store."""
    file = run.stage("fold", PROGRAM)
    with reading(file):
        folded = program.load(file)
    return {layer.name: layer.module for layer in layers_of(folded)}


def _prunable(recipe: Recipe, classes: Sequence[str]) -> nn.Module:
    family = family_of(recipe.model)
    outputs = len(task_of(recipe).outputs(classes))
    model: nn.Module = family.prunable(family.build(recipe.model, outputs).eval())
    return model


def _rows(layers: Sequence[SizedLayer]) -> list[LayerCost]:
    return [
        LayerCost(
            name=layer.name,
            kernel=layer.kernel,
            groups=layer.groups,
            before=layer.before,
            after=layer.after,
        )
        for layer in layers
    ]


def _with_forms(rows: list[LayerCost], run: Finished) -> list[LayerCost]:
    """Rows with the forms of their weights, where a run says them."""
    if not run.recipe.qat.weights.few_bits:
        return rows
    weights = run.report().targets[0].weights
    forms = {} if weights is None else {one.layer: one.form for one in weights.layers}
    return [replace(row, form=forms.get(row.name)) for row in rows]


def _times(
    run: Finished, module: LayersModule, modules: Mapping[str, str], rounds: int
) -> dict[str, float]:
    """Milliseconds of the file's layers, by the module that makes them.

    Args:
        run: whose file is timed.
        module: of its format.
        modules: of the layers of the program, by their names.
        rounds: timed ones.
    """
    taken = module.layer_times(
        run.file.read_bytes(), rounds=rounds, threads=run.recipe.target.threads
    )
    found: defaultdict[str, float] = defaultdict(float)
    for name, milliseconds in taken.items():
        found[modules.get(name, "")] += milliseconds
    return found


def _with_times(rows: Sequence[LayerCost], times: Mapping[str, float]) -> list[LayerCost]:
    """Rows with their times, and further ones for what is no layer with weights of its own.

    The logits of a second split come of the same convolution as the first one's.
    """
    total = sum(times.values())
    known = {row.name for row in rows}
    found = []
    for row in rows:
        ms = times.get(row.name)
        share = None if ms is None else ms / total
        found.append(replace(row, milliseconds=ms, share=share))
    for place in (place for place in times if place not in known):
        ms = times[place]
        name = f"{place} {REST}".strip()
        found.append(LayerCost(name=name, milliseconds=ms, share=ms / total))
    return found


def write_csv(rows: Sequence[LayerCost], path: Path) -> None:
    """Write every row with all its figures; what does not apply is empty."""
    header = ["layer", "kernel", "groups", "height", "width"]
    header += ["outputs before", "params before", "macs before"]
    header += ["outputs after", "params after", "macs after", "form of weights"]
    header += ["milliseconds", "share of time"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            place = [row.before.height, row.before.width] if row.before else ["", ""]
            sizes = [
                figure
                for size in (row.before, row.after)
                for figure in ([size.outputs, size.params, size.macs] if size else [""] * 3)
            ]
            rest = [row.form, row.milliseconds, row.share]
            writer.writerow([row.name, row.kernel, row.groups, *place, *sizes, *rest])
