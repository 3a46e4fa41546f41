"""`pocketnest inspect`: list the layers of a network, before and after."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.base.console import third_party_output_to
from pipeline.commands.run import LOG
from pipeline.recipe.recipe import load_recipes

if TYPE_CHECKING:
    from pipeline.commands.layer_table import Row as LayerRow
    from pipeline.commands.layer_table import Size


def inspect(arguments: argparse.Namespace) -> None:
    """Show every layer of a recipe's network, or of a run before and after pruning.

    Raises:
        InputError: neither a recipe nor the directory of a finished run.
    """
    from pipeline.stages.finished_run import open_run

    target: Path = arguments.target
    if target.is_dir():
        finished = open_run(target, arguments.name)
        with third_party_output_to(target / LOG) as console:
            from pipeline.commands.layer_table import table_of_run

            rows = table_of_run(finished, arguments.rounds)
            _show_layers(rows, finished.recipe.name, arguments.csv, console)
        return
    (recipe,) = load_recipes([target], arguments.overrides)
    with third_party_output_to(Path(os.devnull)) as console:
        from pipeline.commands.layer_table import table_of_recipe

        _show_layers(table_of_recipe(recipe), recipe.name, arguments.csv, console)


def _show_layers(rows: Sequence[LayerRow], name: str, path: Path | None, console: Console) -> None:
    from pipeline.commands.layer_table import write_csv

    pruned = any(row.after is not None for row in rows)
    timed = any(row.share is not None for row in rows)
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    headings = ["kernel", "groups", "output", "params", "MACs"]
    headings += ["channels after", "params after", "MACs after"] if pruned else []
    headings += ["ms", "of the time"] if timed else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_layer_cells(row, pruned, timed))
    table.add_section()
    table.add_row(*_total_cells(rows, pruned, timed))
    console.print(f"[bold]{escape(name)}[/bold]", highlight=False)
    console.print(table)
    if path is not None:
        write_csv(rows, path)
        console.print(f"all figures: {path}", highlight=False)


def _layer_cells(row: LayerRow, pruned: bool, timed: bool) -> list[str]:
    def size(found: Size | None, first: str) -> list[str]:
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


def _total_cells(rows: Sequence[LayerRow], pruned: bool, timed: bool) -> list[str]:
    def sums(found: Sequence[Size | None]) -> list[str]:
        sizes = [size for size in found if size is not None]
        return [f"{sum(s.params for s in sizes):,}", f"{sum(s.macs for s in sizes):,}"]

    cells = ["all", "", "", "", *sums([row.before for row in rows])]
    cells += ["", *sums([row.after for row in rows])] if pruned else []
    if timed:
        cells += [f"{sum(row.milliseconds or 0.0 for row in rows):.3f}", "100.0%"]
    return cells
