"""The layers of a network on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.recipe.weight_forms import BITS

if TYPE_CHECKING:
    from pipeline.commands.inspect.layers import LayerCost
    from pipeline.stages.kept_layers import LayerSize


def show(rows: Sequence[LayerCost], name: str, console: Console) -> None:
    """Print every layer of the recipe `name`, and the sums."""
    pruned = any(row.after is not None for row in rows)
    timed = any(row.share is not None for row in rows)
    formed = any(row.form is not None for row in rows)
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    headings = ["kernel", "groups", "output", "params", "MACs"]
    headings += ["channels after", "params after", "MACs after"] if pruned else []
    headings += ["ms", "of the time"] if timed else []
    headings += ["weights"] if formed else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        form = [f"{BITS[row.form]} bits, {row.form}" if row.form else ""] if formed else []
        table.add_row(*_layer_cells(row, pruned, timed), *form)
    table.add_section()
    table.add_row(*_total_cells(rows, pruned, timed))
    console.print(f"[bold]{escape(name)}[/bold]", highlight=False)
    console.print(table)


def _layer_cells(row: LayerCost, pruned: bool, timed: bool) -> list[str]:
    def size(found: LayerSize | None, first: str) -> list[str]:
        return [first, f"{found.params:,}", f"{found.macs:,}"] if found else [""] * 3

    before, after = row.before, row.after
    shape = f"{before.outputs} x {before.height} x {before.width}" if before else ""
    groups = "" if row.groups is None else str(row.groups)
    cells = [escape(row.name), row.kernel, groups, *size(before, shape)]
    cells += size(after, str(after.outputs) if after else "") if pruned else []
    if timed:
        cells.append("" if row.milliseconds is None else f"{row.milliseconds:.3f}")
        cells.append("" if row.share is None else f"{row.share:.1%}")
    return cells


def _total_cells(rows: Sequence[LayerCost], pruned: bool, timed: bool) -> list[str]:
    def sums(found: Sequence[LayerSize | None]) -> list[str]:
        sizes = [size for size in found if size is not None]
        return [f"{sum(s.params for s in sizes):,}", f"{sum(s.macs for s in sizes):,}"]

    cells = ["all", "", "", "", *sums([row.before for row in rows])]
    cells += ["", *sums([row.after for row in rows])] if pruned else []
    if timed:
        cells += [f"{sum(row.milliseconds or 0.0 for row in rows):.3f}", "100.0%"]
    return cells
