"""The benchmark on the screen."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from pipeline.commands.bench.bars import Outcome
from pipeline.commands.bench.benchmark import Benchmark, CountedFile, Timed
from pipeline.commands.bench.contestants import Contestant
from pipeline.commands.bench.within import Best, Within, drops
from pipeline.measure.lanes.lanes import LANES
from pipeline.measure.roofline import describe

_COUNTED = (
    "instructions of one inference on one thread, emulated; not a time. The least is what the "
    "multiply-accumulates alone would take"
)

_VERDICTS = {
    "met": "[green]met[/green]      ",
    "missed": "[red]missed[/red]   ",
    "undecided": "[yellow]undecided[/yellow]",
    "not asked": "[dim]not asked[/dim]",
}


def show(found: Benchmark, console: Console) -> None:
    """Print every contestant, the rooflines and the bars."""
    table = Table(box=None, pad_edge=False)
    lost = drops(found.contestants)
    for heading in ("", "runtime", "MB", _figure(found), "points of float"):
        table.add_column(heading, justify="left" if heading in {"", "runtime"} else "right")
    for timed in found.timed:
        threads = f"{timed.threads} thread{'s' * (timed.threads > 1)}"
        table.add_column(f"{threads}: ms (p10 to p90)", justify="right")
        table.add_column("x eager (p10 to p90)", justify="right")
    if found.counted:
        for heading in ("M instructions", "multiply int8", "the least, M", "of all"):
            table.add_column(heading, justify="right")
    for contestant in found.contestants:
        figures = [cell for timed in found.timed for cell in _figures(contestant, timed)]
        figures += _counts(found.counted.get(contestant.name)) if found.counted else []
        table.add_row(*_about(contestant, lost), *figures)
    console.print(table)
    if found.counted:
        console.print(f"{LANES[found.lane].title}: {_COUNTED}", highlight=False)
    for contestant in found.contestants:
        if contestant.missing is not None:
            kind = "counted" if found.counted else "timed"
            console.print(f"{contestant.name}: not {kind}: {contestant.missing}", highlight=False)
        elif contestant.note is not None:
            console.print(f"{contestant.name}: {contestant.note}", highlight=False, markup=False)
    for alike in found.within:
        for line in _within(alike):
            console.print(line, highlight=False, markup=False)
    for name, ratio in found.upgrades.items():
        told = f"{ratio.median:.2f} times as fast ({ratio.p10:.2f} to {ratio.p90:.2f}) as here"
        console.print(f"{name}: {told}", highlight=False, markup=False)
    for name, roof in found.rooflines.items():
        console.print(f"[bold]{name}[/bold]", highlight=False)
        for line in describe(roof):
            console.print(f"  {line}", highlight=False, markup=False)
    for outcome in found.outcomes:
        console.print(_line(outcome), highlight=False)


def _figure(found: Benchmark) -> str:
    """The name of the primary figure."""
    accuracies = [c.accuracy for c in found.contestants if c.accuracy is not None]
    return accuracies[0].FIGURE if accuracies else ""


def _about(contestant: Contestant, lost: Mapping[str, float]) -> list[str]:
    size, accuracy = contestant.size_bytes, contestant.accuracy
    drop = lost.get(contestant.name)
    return [
        contestant.name,
        contestant.runtime,
        "" if size is None else f"{size / 1e6:.1f}",
        "" if accuracy is None else f"{accuracy.figure:.2%}",
        "" if drop is None else f"{0.0 - drop:+.2f}",
    ]


def _within(found: Within) -> list[str]:
    """The best files within a bound: of ours and of the others, and how ours compares."""
    heading = f"within {found.bound_pt:g} points of float, {found.runtime}"
    best = "none of ours" if found.ours is None else _best(found.ours)
    if found.ratio is not None and found.bytes_share is not None:
        ratio = found.ratio
        best += (
            f", {ratio.median:.2f} ({ratio.p10:.2f} to {ratio.p90:.2f}) times as fast as the best "
            f"other file, {found.bytes_share:.2f} of its bytes"
        )
    lines = [f"  {one.tool}: {_best(one)}" for one in found.others]
    return [f"{heading}: {best}", *(lines or ["  no file of another tool"])]


def _best(one: Best) -> str:
    return (
        f"{one.name}, {one.milliseconds:.2f} ms, {one.size_bytes / 1e6:.1f} MB, "
        f"{0.0 - one.drop_pt:+.2f} points"
    )


def _figures(contestant: Contestant, timed: Timed) -> list[str]:
    if contestant.name not in timed.latencies:
        return ["not timed", ""]
    taken, ratio = timed.latencies[contestant.name], timed.speedups.get(contestant.name)
    milliseconds = f"{taken.median:.2f} ({taken.p10:.2f} to {taken.p90:.2f})"
    if ratio is None:
        return [milliseconds, ""]
    doubt = " ?" if ratio.verdict == "not told apart" else ""
    return [
        milliseconds,
        f"{ratio.median:.2f} ({ratio.p10:.2f} to {ratio.p90:.2f}){doubt}",
    ]


def _counts(counted: CountedFile | None) -> list[str]:
    """The cells of a file's instructions."""
    if counted is None:
        return ["not counted", "", "", ""]
    cells = [f"{counted.total / 1e6:.3f}", f"{counted.products / 1e6:.3f}"]
    if counted.least is None:
        return [*cells, "", ""]
    return [*cells, f"{counted.least / 1e6:.3f}", f"{100 * counted.least / counted.total:.0f} %"]


def _line(outcome: Outcome) -> str:
    verdict = _VERDICTS[outcome.verdict]
    found = "" if outcome.found is None else f" [{outcome.found:.2f}]".replace("[", "\\[")
    why = "" if outcome.why is None else f": {outcome.why}"
    return f"{verdict} {outcome.bar}{found}{why}"
