"""Layer by layer: an exported file beside its quantized program beside the float network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from pipeline.base.errors import listed, reading
from pipeline.commands.debug.programs import int8_programs
from pipeline.formats.file_facts import Grid
from pipeline.measure.layers import LayerSums, compare_layers, percentile, probes
from pipeline.stages.carried import calibration_images
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images.dataset import pixel_values
from pipeline.tasks.images.pixels import normalize

_IDEAL_DB = 6.02 * 8 + 1.76
"""What 8 bits give a sine over the whole grid (Bennett 1948): the measure for the image itself."""


@dataclass(frozen=True, kw_only=True)
class ComparedLayer:
    """One layer; the attributes are the columns of the CSV file, in this order.

    Attributes:
        layer: name of the quantized tensor in program and file.
        module: where its operation stands in the network in deploy form.
        operation: the operation that makes it.
        scale: of the program's grid.
        zero_point: of the program's grid.
        file_scale: of the file's grid.
        file_zero_point: of the file's grid.
        saturated: share of the float network's values outside the grid.
        program_sqnr_db: signal-to-quantization-noise ratio of the program.
        file_sqnr_db: that of the file.
        lost_db: how much lower the file's ratio is than that of the worst layer it reads; for
            the image, than what 8 bits can give.
        differing: share of values that file and program do not have in common.
        steps_p99: 99th percentile of the difference of file and program in int8 steps.
        steps_largest: the largest such difference.
        own_p99: as `steps_p99`, of this layer alone: from the same numbers as the file's layer.
        own_largest: the largest such difference.
        at_fault: whether the file computes this layer otherwise than the program, or on another
            grid.
    """

    layer: str
    module: str
    operation: str
    scale: float
    zero_point: int
    file_scale: float
    file_zero_point: int
    saturated: float
    program_sqnr_db: float
    file_sqnr_db: float
    lost_db: float
    differing: float
    steps_p99: int
    steps_largest: int
    own_p99: int
    own_largest: int
    at_fault: bool


def compared_layers(run: Finished, images: int) -> list[ComparedLayer]:
    """Compare a run's file with its program and the float network on calibration images.

    Args:
        run: of an int8 target.
        images: how many calibration images, at most.

    Returns:
        The layers, worst first: those that the file computes otherwise, in the order of
        computation, then the others by the decibels lost in them.

    Raises:
        InputError: the target is float, the run's program is gone, or more images are asked for
            than it carries and its data is gone.
    """
    folded, twin = int8_programs(run)
    dataset = calibration_images(run, images)
    if run.recipe.target.takes_pixels:
        dataset = pixel_values(dataset)
    every = torch.arange(len(dataset.calibration))
    shown = normalize(dataset.calibration.pixels(every), dataset.mean, dataset.std)
    trace = partial(run.format.module().trace, run.file)
    with reading(run.file):
        records = compare_layers(folded, twin, trace, shown)
        in_colour = compare_layers(folded, None, trace, probes(dataset))
        for record, probe in zip(records, in_colour, strict=True):
            record.own += probe.own
        return worst_first(records, run.format.module().inspect(run.file).layers)


def worst_first(records: Sequence[LayerSums], grids: dict[str, Grid]) -> list[ComparedLayer]:
    """The rows of compared layers; `grids` are the file's, by layer name.

    Raises:
        ValueError: the file does not say the grid of a layer.
    """
    ratios = {record.layer.name: record.file_sqnr_db for record in records}
    if missing := sorted(ratios.keys() - grids.keys()):
        raise ValueError(f"it says no grid of {listed(missing)}")
    rows = [_row(record, grids[record.layer.name], ratios) for record in records]
    wrong = [row for row in rows if row.at_fault]
    others = [row for row in rows if not row.at_fault]
    return wrong + sorted(others, key=lambda row: row.lost_db, reverse=True)


def _row(record: LayerSums, found: Grid, ratios: dict[str, float]) -> ComparedLayer:
    layer, steps = record.layer, record.steps
    # A flatten that no file holds has no ratio of its own.
    before = [ratios[name] for name in layer.inputs if name in ratios]
    reached = min(before, default=_IDEAL_DB)
    lost = 0.0 if math.isinf(reached) else reached - record.file_sqnr_db
    return ComparedLayer(
        layer=layer.name,
        module=layer.module,
        operation=layer.operation,
        scale=layer.scale,
        zero_point=layer.zero_point,
        file_scale=found[0],
        file_zero_point=found[1],
        saturated=record.saturated,
        program_sqnr_db=record.program_sqnr_db,
        file_sqnr_db=record.file_sqnr_db,
        lost_db=lost,
        differing=float(steps[1:].sum() / steps.sum()),
        steps_p99=percentile(steps, 0.99),
        steps_largest=int(steps.nonzero().max()),
        own_p99=percentile(record.own, 0.99),
        own_largest=int(record.own.nonzero().max()),
        at_fault=record.at_fault or (layer.scale, layer.zero_point) != found,
    )
