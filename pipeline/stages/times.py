"""The stage that times files of the unpruned network, and the goal that follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.base.errors import InputError
from pipeline.formats.formats import FORMATS
from pipeline.formats.write import export
from pipeline.measure.attempt import Attempt
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.recipe.recipe import Recipe
from pipeline.stages.context import (
    PROGRAM,
    Context,
    Inputs,
    branched_model,
    calibration_batches,
    fed,
    float_places,
    quantized_graph,
    write_json,
)
from pipeline.stages.exported import CALIBRATION
from pipeline.stages.stage import (
    CORE,
    CUTTING,
    GOALS,
    IMAGES,
    LANE,
    PRUNING,
    QUANTIZER,
    QUANTIZING,
    Stage,
    StageFacts,
)
from pipeline.tasks.images.dataset import Dataset

if TYPE_CHECKING:
    from pipeline.compress.pruning.prune import Goal
    from pipeline.measure import width_times

SAMPLES = "samples.json"
_TOLERANCE, _LISTED = 0.1, 6


class TimesFacts(StageFacts):
    """How well the times of files are foretold.

    Attributes:
        errors: (predicted - measured) / measured of the files that the fit has not seen.
    """

    errors: tuple[float, ...]


def times(context: Context, inputs: Inputs, out: Path) -> TimesFacts:
    """Write the unpruned network's file, with random weights, and time files cut from it.

    Raises:
        InputError: this host cannot time the target's format, or the target is not int8.
    """
    from pipeline.compress.quantization import program, qat
    from pipeline.compress.quantization.fold import quantized_program
    from pipeline.measure import width_times

    recipe = context.recipe
    assert recipe.prune is not None
    target, shape = recipe.target, recipe.model.input_shape
    if target.precision == "float":
        raise InputError(
            "prune.latency: layers are timed in int8 files, and target.precision is float; give "
            "prune.macs, params or size_mb, or precision int8"
        )
    if target.cpu != "any":
        raise InputError(
            f"prune.latency: widths are searched for in files for any CPU, and target.cpu is "
            f"{target.cpu}; give prune.macs, params or size_mb, or cpu any"
        )
    why_not = LANES[HOST].cannot_time(target.format)
    if why_not is None and FORMATS[target.format].layers is None:
        why_not = "nothing here times their layers"
    if why_not is not None:
        raise InputError(
            f"prune.latency: {target.format} files cannot be timed here: {why_not}; give "
            "prune.macs, params or size_mb"
        )
    torch.manual_seed(0)
    graph = quantized_graph(context, branched_model(context))
    qat.calibrate(graph, lambda: calibration_batches(context))
    program.save(quantized_program(graph, torch.zeros(shape.batch(2))), out / PROGRAM)
    here = {"times": out}
    path = unpruned_file(context, here)
    export(out / PROGRAM, target.format, path, pixels=target.takes_pixels)
    file = timed_file(context, here)
    samples = width_times.take_samples(file, recipe.prune.round_to)
    write_json(out / SAMPLES, [asdict(sample) for sample in samples])
    return TimesFacts(errors=width_times.fit(file.layers, samples).errors)


def unpruned_file(context: Context, inputs: Inputs) -> Path:
    """The file of the unpruned network with random weights."""
    return inputs["times"] / f"unpruned{FORMATS[context.recipe.target.format].suffix}"


def timed_file(context: Context, inputs: Inputs) -> width_times.TimedFile:
    """The unpruned network's file that the stage `times` left."""
    from pipeline.compress.pruning.followed import followed
    from pipeline.compress.quantization import program
    from pipeline.measure import width_times
    from pipeline.measure.file_layers import file_layers

    recipe, shape = context.recipe, context.recipe.model.input_shape
    model = branched_model(context)
    found = followed(model, shape, context.family.structure(model))
    return width_times.TimedFile(
        content=unpruned_file(context, inputs).read_bytes(),
        format_name=recipe.target.format,
        layers=file_layers(program.load(inputs["times"] / PROGRAM), found.groups),
        groups=found.groups,
        kept=found.kept,
        image=_image(fed(context).dataset),
        threads=recipe.target.threads,
        rounds=recipe.measure.rounds,
    )


def _image(dataset: Dataset) -> NDArray[np.float32]:
    """An image to time with: none of a test set, on which the widths then would depend."""
    from pipeline.measure import timing

    image = timing.first_image(replace(dataset, tests={CALIBRATION: dataset.calibration}))
    found: NDArray[np.float32] = image.numpy()
    return found


def goal_and_file(
    context: Context, inputs: Inputs, model: nn.Module
) -> tuple[Goal, width_times.TimedFile | None]:
    """What the pruning is to reach; with the file to time where that is a latency.

    Args:
        context: of a recipe that prunes.
        inputs: earlier results.
        model: the network in prunable form, before anything is removed.
    """
    from pipeline.compress.pruning.prune import Goal, goal_of
    from pipeline.measure import width_times

    recipe = context.recipe
    config = recipe.prune
    assert config is not None
    if config.latency is None:
        by_precision = FORMATS[recipe.target.format].bytes
        stored = by_precision[recipe.target.precision], by_precision["float"]
        shape, floats = recipe.model.input_shape, float_places(recipe)
        return goal_of(context.family, model, shape, config, *stored, floats), None
    file = timed_file(context, inputs)
    content = json.loads((inputs["times"] / SAMPLES).read_text(encoding="utf-8"))
    samples = [width_times.Sample(**sample) for sample in content]
    cost = width_times.fit(file.layers, samples).cost
    whole = cost.of({group.name: group.channels for group in file.groups})
    share = isinstance(config.latency, float | int)
    asked = float(config.latency) if config.milliseconds is None else config.milliseconds
    limit = asked * whole if share else asked / samples[0].milliseconds * whole
    goal = Goal(
        key="latency",
        cost=cost,
        whole=whole,
        limit=min(limit, whole),
        asked=asked,
        share=share,
        kept=file.kept,
    )
    return goal, file


def refuse_too_slow(goal: Goal, attempts: Sequence[Attempt], limit: float) -> None:
    """Stop before training where no file that was timed comes near the time asked for.

    Raises:
        InputError: gives the nearest time that was measured, and the layers at their floor.
    """
    from pipeline.measure import width_times

    wanted = limit / goal.whole
    best = width_times.nearest(attempts, wanted)
    if best.measured <= wanted * (1 + _TOLERANCE):
        return
    smallest = [name for name, width in best.widths.items() if width == min(best.widths.values())]
    took = best.measured if goal.share else best.measured * goal.asked / wanted
    raise InputError(
        f"prune.latency: got {goal.asked:g}; the nearest file that was timed takes {took:.3f}, "
        f"though {best.predicted * took / best.measured:.3f} was predicted; ask for that or more. "
        f"Narrowest layers: {', '.join(smallest[:_LISTED])} ({min(best.widths.values())} channels)"
    )


def _shape(recipe: Recipe) -> tuple[str, ...]:
    """Whatever the network's family has that decides its shape; its weights do not matter."""
    return tuple(f"model.{key}" for key in recipe.model.shape_keys())


def _prunes_to_a_time(recipe: Recipe) -> bool:
    return recipe.prune is not None and recipe.prune.latency is not None


STAGE = Stage(
    name="times",
    make=times,
    facts=TimesFacts,
    after=(),
    reads=(
        *("task", "measure", "prune.round_to"),
        *("target.format", "target.precision", "target.input", "target.threads"),
    ),
    also_reads=_shape,
    code=(
        *(*CORE, *PRUNING, *QUANTIZER, *GOALS, *LANE, "formats"),
        *("measure/layers.py", "measure/timing.py", "measure/latency.py"),
    ),
    packages=(*IMAGES, *CUTTING, *QUANTIZING),
    of_format=True,
    on_host=True,
    needed=_prunes_to_a_time,
)
