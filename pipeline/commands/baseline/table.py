"""A float baseline on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.measure.baseline.record import Clocks, FloatBaseline, Timing


def show(found: FloatBaseline, console: Console) -> None:
    """Print the clocks, every timing, and what could not be measured."""
    console.print(
        f"{found.device}, clocks before and after: {_clocks(found.clocks.before)}, "
        f"{_clocks(found.clocks.after)}",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("precision")
    primary = next(iter(next(iter(found.accuracy.values())).values())).FIGURE
    for heading in (primary, "batch", "ms", "p10 to p90", "images/s", "CUDA graph"):
        table.add_column(heading, justify="right")
    for timing in found.timings:
        accuracy = next(iter(found.accuracy[timing.precision].values()))
        table.add_row(*_timing_cells(timing, accuracy.figure))
    console.print(table)
    for what, why in found.not_measured.items():
        console.print(f"not measured: {what}: {why}", highlight=False, markup=False)


def _clocks(clocks: Clocks | None) -> str:
    return "not known" if clocks is None else f"{clocks.core_mhz:.0f} MHz"


def _timing_cells(timing: Timing, share: float) -> list[str]:
    latency, other = timing.latency_ms, timing.other_ms
    graph = "yes" if timing.cuda_graph else "no"
    if other is not None:
        graph += f" (otherwise {other.median:.3f} ms)"
    return [
        timing.precision,
        f"{share:.2%}",
        str(timing.batch),
        f"{latency.median:.3f}",
        f"{latency.p10:.3f} to {latency.p90:.3f}",
        f"{timing.images_per_second:.1f}",
        graph,
    ]
