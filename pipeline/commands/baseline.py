"""`pocketnest baseline`: measure the float network here, and keep it for reports."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pipeline.base.console import third_party_output_to, tracked
from pipeline.base.safe_files import refuse_link
from pipeline.commands.run import LOG
from pipeline.measure.baseline.record import BASELINES
from pipeline.recipe.recipe import load_recipes

if TYPE_CHECKING:
    from pipeline.measure.baseline.record import Clocks, FloatBaseline, Timing


def baseline(arguments: argparse.Namespace) -> None:
    """Measure a recipe's float network on this machine and save it for later reports.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
    """
    (recipe,) = load_recipes([arguments.recipe], arguments.overrides)
    out: Path = arguments.out
    with third_party_output_to(out / LOG) as console:
        from pipeline.measure.baseline.files import save
        from pipeline.measure.baseline.measuring import measured
        from pipeline.measure.timing import size_bytes
        from pipeline.networks.checkpoints import WEIGHTS
        from pipeline.stages.context import float_model
        from pipeline.stages.run import begun

        refuse_link(out / BASELINES)  # before anything is measured
        with begun(recipe, out, console, until="train") as started:
            trained = started.results["train"].directory
            model = float_model(started.context, {"train": trained})
            weights = trained / WEIGHTS
            shown = partial(tracked, console)
            dataset = started.context.dataset
            found = measured(recipe, model, dataset, size_bytes(weights), shown)
        path = save(found, out)
        _show_baseline(found, console)
        for title, file in (("weights", weights), ("baseline", path)):
            console.print(f"{title}: {file}", highlight=False, markup=False)


def _show_baseline(found: FloatBaseline, console: Console) -> None:
    console.print(
        f"{found.device}, clocks before and after: {_clocks(found.clocks.before)}, "
        f"{_clocks(found.clocks.after)}",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("precision")
    for heading in ("top-1", "batch", "ms", "p10 to p90", "images/s", "CUDA graph"):
        table.add_column(heading, justify="right")
    for timing in found.timings:
        top1 = next(iter(found.accuracy[timing.precision].values())).top1
        table.add_row(*_timing_cells(timing, top1))
    console.print(table)
    for what, why in found.not_measured.items():
        console.print(f"not measured: {what}: {why}", highlight=False, markup=False)


def _clocks(clocks: Clocks | None) -> str:
    return "not known" if clocks is None else f"{clocks.core_mhz:.0f} MHz"


def _timing_cells(timing: Timing, top1: float) -> list[str]:
    latency, other = timing.latency_ms, timing.other_ms
    graph = "yes" if timing.cuda_graph else "no"
    if other is not None:
        graph += f" (otherwise {other.median:.3f} ms)"
    return [
        timing.precision,
        f"{top1:.2%}",
        str(timing.batch),
        f"{latency.median:.3f}",
        f"{latency.p10:.3f} to {latency.p90:.3f}",
        f"{timing.images_per_second:.1f}",
        graph,
    ]
