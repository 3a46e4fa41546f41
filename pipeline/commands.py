"""What the commands of the command line do, once their arguments are parsed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.console import third_party_output_to
from pipeline.errors import InputError
from pipeline.recipe import load_recipes
from pipeline.records import Report, TargetResult

LOG = "run.log"


def run(recipes: Sequence[Path], arguments: argparse.Namespace) -> bool:
    """Run recipes and show the result; True where every budget is met."""
    loaded = load_recipes(recipes, arguments.overrides)
    out: Path = arguments.out
    with third_party_output_to(out / LOG) as console:
        # Imported here: torch and what it loads print while they load.
        from pipeline.run import run_recipes

        reports = run_recipes(loaded, out, console, fresh=arguments.fresh)
        combined = len(reports) > len(loaded)
        for report, directory in reports[-1:] if combined else reports:
            show(report, directory, console)
    return all(report.passed for report, _ in reports)


def show(report: Report, directory: Path, console: Console) -> None:
    """Print the targets of a report as a table, and where it lies."""
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "file", "MB", "top-1", "drop", "speedup", "int8", "scales", ""):
        table.add_column(heading, justify="left" if heading in {"target", "file"} else "right")
    base = next(iter(report.baseline.accuracy.values()))
    size = f"{report.baseline.size_bytes / 1e6:.1f}"
    table.add_row("float", f"({report.baseline.device_kind})", size, f"{base.top1:.2%}")
    for target in report.targets:
        table.add_row(*_row(target))
    console.print(table)
    console.print(f"report: {directory / 'report.md'}", highlight=False)


def _row(target: TargetResult) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "not measured" if value is None else format(value, form)

    top1 = None if target.accuracy is None else next(iter(target.accuracy.values())).top1
    exact = target.scales_exact
    return [
        target.name,
        target.path,
        f"{target.size_mb:.1f}",
        shown(top1, ".2%"),
        shown(target.accuracy_drop_pt, ".2f"),
        shown(target.speedup, ".2f"),
        shown(target.int8_coverage, ".0%"),
        f"{exact.same}/{exact.total}" if exact else "none",
        "[green]passed[/green]" if target.passed else "[red]missed[/red]",
    ]


def bench(run_dir: Path, rounds: int) -> None:
    """Time the file of a run again, in turn with the float network, and write bench.json.

    The float network has random weights here: its time does not depend on them, and a run's
    directory does not carry 100 MB of float weights for it.

    Raises:
        InputError: the directory is not that of a run, or its file cannot run on this host.
    """
    recipe_file = run_dir / "recipe.yaml"
    if not recipe_file.is_file():
        raise InputError(f"{run_dir}: not the directory of a run, it has no recipe.yaml")
    (recipe,) = load_recipes([recipe_file])
    with third_party_output_to(run_dir / LOG) as console:
        from pipeline.bench import time_run

        timings = time_run(recipe, run_dir, rounds)
        table = Table(box=None, pad_edge=False)
        for heading in ("threads", "", "median ms", "p10", "p90", "float / file"):
            table.add_column(heading, justify="right")
        for timing in timings:
            for name, taken in (("float", timing.float_cpu), ("file", timing.target)):
                ratio = (
                    f"{timing.ratio.median:.2f} ({timing.ratio.p10:.2f} to {timing.ratio.p90:.2f})"
                )
                figures = [f"{ms:.2f}" for ms in (taken.median, taken.p10, taken.p90)]
                table.add_row(str(taken.threads), name, *figures, ratio if name == "file" else "")
        console.print(f"[bold]{recipe.name}[/bold]", highlight=False)
        console.print(table)
