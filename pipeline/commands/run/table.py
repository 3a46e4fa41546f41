"""The result of a run on the screen, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pipeline.formats.scales import ScalesExact
    from pipeline.report.records import Report, TargetResult
    from pipeline.stages.explain import Explained


def show(report: Report, directory: Path, console: Console) -> None:
    """Print the targets of a report as a table, and where it lies."""
    from pipeline.report import words

    base = next(iter(report.baseline.accuracy.values()))
    table = Table(box=None, pad_edge=False)
    headings = ("target", "file", "MB", base.FIGURE, "drop", "speedup", "int8", "scales", "weights")
    for heading in (*headings, ""):
        table.add_column(heading, justify="left" if heading in {"target", "file"} else "right")
    size = f"{report.baseline.size_bytes / 1e6:.1f}"
    where = "" if report.baseline.measured_here else ", elsewhere"
    table.add_row("float", f"({report.baseline.device_kind}{where})", size, f"{base.figure:.2%}")
    for target in report.targets:
        table.add_row(*_cells(target, directory))
    console.print(table)
    for target in report.targets:
        if (in_float := words.in_float(target)) is not None:
            console.print(f"{target.name}: {escape(in_float)}", highlight=False)
        if (outside := words.outside(target)) is not None:
            console.print(f"[yellow]{target.name}[/yellow]: {escape(outside)}", highlight=False)
    console.print(f"report: {directory / 'report.html'}", highlight=False)


def show_stages(name: str, stages: Sequence[Explained], console: Console) -> None:
    """Print what a run of the recipe `name` would do about every stage, and why."""
    console.print(f"[bold]{name}[/bold]", highlight=False)
    for stage in stages:
        does = "reused" if stage.reused else "made"
        console.print(f"  {stage.stage:<9} {does:<7}", escape(stage.why), highlight=False)


def as_json(reports: Sequence[tuple[Report, Path]]) -> str:
    """What a program wants to know of reports in their directories; those have the rest."""
    return json.dumps([_summary(report, directory) for report, directory in reports], indent=2)


def _summary(report: Report, directory: Path) -> dict[str, Any]:
    figures = ("device", "format", "size_bytes", "accuracy_drop_pt", "speedup", "passed")
    return {
        "passed": report.passed,
        "report": str(directory / "report.json"),
        "targets": [
            {
                "name": target.name,
                "file": str(_file(target, directory)),
                **{name: getattr(target, name) for name in figures},
                "parity": target.parity.passed,
            }
            for target in report.targets
        ],
    }


def _file(target: TargetResult, directory: Path) -> Path:
    """Where a target's file lies, given the directory of its report or of a combined one."""
    return directory.parent / target.name / target.path


def _cells(target: TargetResult, directory: Path) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "not measured" if value is None else format(value, form)

    share = None if target.accuracy is None else next(iter(target.accuracy.values())).figure
    reference = " (reference)" if target.evaluated == "reference" else ""
    exact = target.scales_exact
    return [
        target.name,
        str(_file(target, directory)),
        f"{target.size_mb:.1f}",
        shown(share, ".2%") + reference,
        shown(target.accuracy_drop_pt, ".2f"),
        shown(target.speedup, ".2f"),
        shown(target.int8_coverage, ".0%"),
        f"{exact.same}/{exact.total}" if exact else "none",
        _weights(exact),
        _verdict(target),
    ]


def _weights(exact: ScalesExact | None) -> str:
    """How many weights are the learned ones: `all` of millions takes less room."""
    from pipeline.report.words import weights_same

    if exact is None:
        return "none"
    return "all" if 0 < exact.codes_same == exact.codes_total else weights_same(exact)


def _verdict(target: TargetResult) -> str:
    verdict = "[green]passed[/green]" if target.passed else "[red]missed[/red]"
    return verdict if target.sound else f"{verdict}, [red]mismatch allowed[/red]"
