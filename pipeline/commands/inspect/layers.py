"""What every layer of a network holds, does and costs, before and after pruning."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from pipeline.base.errors import reading
from pipeline.compress.pruning.prune import take_shapes
from pipeline.compress.quantization import program
from pipeline.formats.format import LayersModule
from pipeline.measure.layers import layers_of
from pipeline.networks.checkpoints import WEIGHTS, read_checkpoint
from pipeline.networks.count import LayerCount, count
from pipeline.networks.families import family_of
from pipeline.recipe.input_shape import InputShape
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import PROGRAM
from pipeline.stages.finished_run import Finished
from pipeline.stages.presets import with_preset
from pipeline.tasks.tasks import task_of

REST = "(other operations)"


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """One layer at one width.

    Attributes:
        outputs: channels.
        height: of the output.
        width: of the output.
        params: C_o C_i K_h K_w / G + C_o; every convolution has a bias once batch normalisation
            is folded into it.
        macs: C_o C_i K_h K_w / G x H_o W_o for one image.
    """

    outputs: int
    height: int
    width: int
    params: int
    macs: int


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
    """

    name: str
    kernel: str = ""
    groups: int | None = None
    before: LayerSize | None = None
    after: LayerSize | None = None
    milliseconds: float | None = None
    share: float | None = None


def table_of_recipe(recipe: Recipe) -> list[LayerCost]:
    """The layers of the network that a recipe starts from.

    Raises:
        InputError: the classes of its data cannot be read, whose number decides the outputs.
    """
    recipe, _ = with_preset(recipe)
    shape = recipe.model.input_shape
    return _rows(_prunable(recipe, task_of(recipe).class_names(recipe.data)), None, shape)


def table_of_run(run: Finished, rounds: int) -> list[LayerCost]:
    """The layers of a finished run, each with its share of the file's time on this machine.

    Args:
        run: one target's.
        rounds: timed rounds; the medians count.

    Raises:
        InputError: a stage's result is gone from the store.
    """
    recipe, shape = run.recipe, run.recipe.model.input_shape
    small = _prunable(recipe, run.classes)
    last = "prune" if recipe.sparsify is None else "sparsify"
    weights = run.stage(last, WEIGHTS)
    with reading(weights):
        take_shapes(small, read_checkpoint(weights))
    rows = _rows(_prunable(recipe, run.classes), small, shape)
    if recipe.target.precision == "float" or run.format.module().cannot_time() is not None:
        return rows
    if run.format.layers is None:
        return rows
    with reading(run.file):
        return _with_times(rows, _times(run, run.format.layers(), rounds))


def _prunable(recipe: Recipe, classes: Sequence[str]) -> nn.Module:
    family = family_of(recipe.model)
    outputs = len(task_of(recipe).outputs(classes))
    model: nn.Module = family.prunable(family.build(recipe.model, outputs).eval())
    return model


def _rows(whole: nn.Module, small: nn.Module | None, shape: InputShape) -> list[LayerCost]:
    after = {} if small is None else {n.name: _size(n) for n in count(small, shape).layers}
    return [
        LayerCost(
            name=layer.name,
            kernel="x".join(map(str, layer.kernel)),
            groups=layer.groups,
            before=_size(layer),
            after=after.get(layer.name),
        )
        for layer in count(whole, shape).layers
    ]


def _size(layer: LayerCount) -> LayerSize:
    weights = layer.inputs * layer.outputs * math.prod(layer.kernel) // layer.groups
    height, width = layer.output_shape[2:] or (1, 1)
    return LayerSize(
        outputs=layer.outputs,
        height=height,
        width=width,
        params=weights + layer.outputs,
        macs=layer.macs,
    )


def _times(run: Finished, module: LayersModule, rounds: int) -> dict[str, float]:
    """Milliseconds of the file's layers, by the module that makes them."""
    taken = module.layer_times(
        run.file.read_bytes(), rounds=rounds, threads=run.recipe.target.threads
    )
    folded = program.load(run.stage("fold", PROGRAM))
    places = {layer.name: layer.module for layer in layers_of(folded)}
    found: defaultdict[str, float] = defaultdict(float)
    for name, milliseconds in taken.items():
        found[places.get(name, "")] += milliseconds
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
        found.append(LayerCost(**{**vars(row), "milliseconds": ms, "share": share}))
    for place in (place for place in times if place not in known):
        ms = times[place]
        name = f"{place} {REST}".strip()
        found.append(LayerCost(name=name, milliseconds=ms, share=ms / total))
    return found


def write_csv(rows: Sequence[LayerCost], path: Path) -> None:
    """Write every row with all its figures; what does not apply is empty."""
    header = ["layer", "kernel", "groups", "height", "width"]
    header += ["outputs before", "params before", "macs before"]
    header += ["outputs after", "params after", "macs after", "milliseconds", "share of time"]
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
            writer.writerow(
                [row.name, row.kernel, row.groups, *place, *sizes, row.milliseconds, row.share]
            )
