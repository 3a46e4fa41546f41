"""The report as one page for people who never open Python; it needs no network and no other file.

All it says comes from the report; pipeline.report.charts draws, the template words and orders.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from pipeline.base.templates import templates
from pipeline.compress.training.epoch import Epoch
from pipeline.recipe.weight_forms import BITS, WEIGHT_FORMS
from pipeline.report import arm64, bits, charts, delegates, device, downloads, words
from pipeline.report.class_bars import MOST_IN_A_MATRIX, by_class_bars
from pipeline.report.classes import by_class, counts_link, worst
from pipeline.report.labels import by_label, kind_of, precisions_link
from pipeline.report.labels import shown as of_label
from pipeline.report.pictures import Pictures
from pipeline.report.records import COMBINED, Report, StageRecord, TargetResult
from pipeline.tasks.accuracy import Confusion

_LISTED = 20
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A chart with what it shows in words, for whoever cannot see it."""

    svg: Markup
    label: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Images of class `true` that were named `said`, and how strong the cell is drawn, 0 to 1."""

    true: int
    said: int
    number: int
    strength: float


def render(report: Report, shown: Pictures = Pictures()) -> str:  # noqa: B008  frozen
    """Return `report` as one HTML page.

    Args:
        report: of one recipe or several.
        shown: what was made of a few test images, where that can be drawn.
    """
    reasons = words.missing_by_reason(report)
    pairs = [(report.baseline.confusion_missing, "classes of the float baseline")]
    pairs += [(t.confusion_missing, f"classes that {t.name} named") for t in report.targets]
    for reason, what in pairs:
        if reason is not None:
            reasons.setdefault(reason, []).append(what)
    notes = tuple(reasons)
    page = (
        templates("pipeline.report", html=True)
        .get_template("report.html.j2")
        .render(
            report=report,
            title=_title(report),
            words=words,
            notes=notes,
            missing_what=reasons,
            labelled=labelled,
            missing=partial(_missing, notes),
            arm64=arm64,
            bits=bits,
            delegates=delegates,
            device=device,
            downloads=downloads,
            percent=words.percent,
            figure=words.figure,
            first=next(iter(report.baseline.accuracy)),
            primary=words.primary(report),
            columns=words.columns(report),
            pictures=_pictures(report),
            classes=words.class_names(report),
            by_class=by_class(report),
            by_label=by_label(report),
            worst=worst,
            counts_link=partial(counts_link, report),
            precisions_link=partial(precisions_link, report),
            precision=partial(of_label, kind_of(report)) if by_label(report) else None,
            shown=shown,
            each={
                n: Picture(svg=Markup(svg), label=said) for n, svg, said in by_class_bars(report)
            },
            kinds=next(iter(report.baseline.accuracy.values())),
            whole_matrix=report.model.num_classes <= MOST_IN_A_MATRIX,
            matrix=matrix,
            largest=largest,
            changed=changed,
            drawn=partial(_drawn, Counter()),
            verdict=words.budget_verdict,
        )
    )
    return f"{page.strip()}\n"


def labelled(rows: Markup, headings: Sequence[str]) -> Markup:
    """Rows of a table with the heading of every cell, which a narrow screen shows beside it.

    Roles are given, since what is no longer drawn as a table is no longer read out as one.
    """

    def row(found: re.Match[str]) -> str:
        place = 0

        def cell(one: re.Match[str]) -> str:
            nonlocal place
            heading = headings[place] if place < len(headings) else ""
            span = re.search(r'colspan="(\d+)"', one[0])
            place += int(span[1]) if span else 1
            role = "rowheader" if one[1] == "th" else "cell"
            label = Markup(' data-label="{0}" role="{1}"').format(heading, role)
            return f"<{one[1]}{label}{one[2]}>"

        return '<tr role="row">' + re.sub(r"<(t[hd])\b([^>]*)>", cell, found[1]) + "</tr>"

    return Markup(re.sub(r"<tr>(.*?)</tr>", row, str(rows), flags=re.S))


def _title(report: Report) -> str:
    """The recipe's name; of several recipes, what they are all of."""
    if report.recipe.name != COMBINED or len(report.targets) == 1:
        return report.recipe.name
    return f"{report.model.name} for {len(report.targets)} targets"


def _drawn(shown: Counter[Markup], svg: Markup) -> Markup:
    """A picture whose ids are its own, were it shown before on this page."""
    shown[svg] += 1
    return svg if shown[svg] == 1 else Markup(charts.renumbered(svg, shown[svg]))


def _missing(notes: Sequence[str], reason: str | None) -> Markup:
    """What stands where a figure was not measured: that, and a way to the reason."""
    assert reason is not None  # the records refuse a missing figure without one
    number = notes.index(reason) + 1
    text = '<span class="missing">not measured <a href="#reason-{0}">(reason {0})</a></span>'
    return Markup(text).format(number)


def matrix(confusion: Confusion, classes: int) -> list[list[Cell]]:
    """Every cell of a confusion matrix, row by row; drawn as strong as its share of the row."""
    counts = {(true, said): number for true, said, number in confusion.cells}
    images = [total for _, total in confusion.by_class(classes)]
    return [
        [_cell(true, said, counts.get((true, said), 0), images[true]) for said in range(classes)]
        for true in range(classes)
    ]


def _cell(true: int, said: int, number: int, images: int) -> Cell:
    strength = number / images if images else 0.0
    return Cell(true=true, said=said, number=number, strength=strength)


def largest(confusion: Confusion) -> list[Cell]:
    """The classes that are most often taken for another, most images first."""
    wrong = [cell for cell in confusion.cells if cell[0] != cell[1]]
    ordered = heapq.nsmallest(_LISTED, wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))
    return [_cell(true, said, number, 0) for true, said, number in ordered]


def changed(before: Confusion, after: Confusion) -> list[Cell]:
    """Where two confusions differ most: images more, or fewer below 0, largest first."""
    counts = {(true, said): -number for true, said, number in before.cells}
    for true, said, number in after.cells:
        counts[true, said] = counts.get((true, said), 0) + number
    differing = [(pair, number) for pair, number in counts.items() if number]
    ordered = heapq.nsmallest(_LISTED, differing, key=lambda one: (-abs(one[1]), one[0]))
    return [_cell(true, said, number, 0) for (true, said), number in ordered]


def _pictures(report: Report) -> dict[str, Any]:
    timed = [(n, t) for n, t in enumerate(report.targets) if t.latency_ms is not None]
    made: dict[str, Any] = {
        "trade_off": _trade_off(report),
        "has_front": len(charts.pareto(_points(report))) > 1,
        "frontier": _frontier(report),
        "bits": [_bits(target) for target in report.targets if target.weights is not None],
        "not_drawn": [t.name for t in report.targets if t.latency_ms is None],
        "sizes": _sizes(report),
        "latency": _spread(timed) if timed else None,
        "stages": [
            (title, _timeline(title, stages, words.primary(report)))
            for title, stages in _timelines(report)
        ],
        "curves": _curves(report),
    }
    return made


def _points(report: Report) -> tuple[charts.Point, ...]:
    """The float model and every file that was timed and judged, by their times."""
    base = report.float_cpu if report.float_cpu.latency_ms else report.baseline
    points = []
    if base.latency_ms is not None:
        name = f"float ({base.device_kind.upper()})"
        points.append(_of_float(report, name, base.latency_ms.median))
    for number, target in enumerate(report.targets):
        if target.latency_ms is not None:
            points += _point(report, number, target.latency_ms.median)
    return tuple(points)


def _of_float(report: Report, name: str, cost: float) -> charts.Point:
    first = next(iter(report.baseline.accuracy))
    return charts.Point(
        name=name,
        cost=cost,
        figure=report.baseline.accuracy[first].figure,
        title=words.primary(report),
        megabytes=report.baseline.size_bytes / 1e6,
        colour=None,
    )


def _point(report: Report, number: int, cost: float) -> list[charts.Point]:
    """A file at its cost; none where its accuracy is not known."""
    target, first = report.targets[number], next(iter(report.baseline.accuracy))
    if target.accuracy is None:
        return []
    return [
        charts.Point(
            name=target.name,
            cost=cost,
            figure=target.accuracy[first].figure,
            title=words.primary(report),
            megabytes=target.size_mb,
            colour=number,
        )
    ]


def _trade_off(report: Report) -> Picture | None:
    points = _points(report)
    return _against(report, points, "time for one image", "milliseconds for one image", "ms")


def _frontier(report: Report) -> Picture | None:
    """What is paid in accuracy for a small download; None where there is one file alone."""
    files = [
        point
        for number, target in enumerate(report.targets)
        for point in _point(report, number, target.download_bytes / 1e6)
    ]
    if len(files) < 2:
        return None
    float_model = _of_float(report, "float weights", report.baseline.size_bytes / 1e6)
    return _against(report, (float_model, *files), "download", "megabytes of the download", "MB")


def _against(
    report: Report, points: tuple[charts.Point, ...], what: str, axis: str, unit: str
) -> Picture | None:
    """The primary figure of files against what they cost, which is called `what`."""
    if not points:
        return None
    front = ", ".join(p.name for p in charts.pareto(points))
    said = "; ".join(
        f"{p.name}: {words.percent(p.figure)} in {words.figure(p.cost)} {unit}"
        + ("" if unit == "MB" else f", {words.figure(p.megabytes)} MB")
        for p in points
    )
    title = words.title(words.primary(report))
    label = f"{title} against {what}. {said}. Not beaten by any other: {front}."
    return Picture(svg=Markup(charts.trade_off(points, axis)), label=label)


def _bits(target: TargetResult) -> tuple[str, Picture]:
    """How many bits the weights of each layer have."""
    assert target.weights is not None
    layers = target.weights.layers
    svg = charts.heights(
        tuple(float(BITS[one.form]) for one in layers),
        tuple(WEIGHT_FORMS.index(one.form) for one in layers),
        WEIGHT_FORMS,
    )
    counts = ", ".join(f"{n.layers} in {form}" for form, n in target.weights.forms.items())
    label = f"Bits of the weights of {target.name}, layer by layer. {counts}."
    return target.name, Picture(svg=Markup(svg), label=label)


def _sizes(report: Report) -> Picture:
    groups: list[tuple[str, tuple[tuple[str, float], ...], int | None]] = [
        ("float weights", (("", report.baseline.size_bytes / 1e6),), None)
    ]
    for number, target in enumerate(report.targets):
        values = [("file", target.size_mb), ("download", target.download_mb)]
        if (left := _left(target, report)) is not None:
            values.insert(0, ("pruned, float", _FLOAT_BYTES * left / 1e6))
        groups.append((target.name, tuple(values), number))
    said = "; ".join(
        f"{name} {label}: {words.figure(value)} MB".replace(" :", ":")
        for name, values, _ in groups
        for label, value in values
    )
    return Picture(svg=Markup(charts.bars(tuple(groups), "MB")), label=f"Sizes. {said}.")


def _left(target: TargetResult, report: Report) -> int | None:
    """Parameters that pruning left; None where it took none."""
    counts = [stage.params for stage in target.stages if stage.name == "prune" and stage.params]
    return counts[0] if counts and counts[0] < report.model.params else None


def _spread(timed: Iterable[tuple[int, TargetResult]]) -> Picture:
    rows, said = [], []
    for number, target in timed:
        assert target.latency_ms is not None
        rows.append((target.name, target.latency_ms.samples_ms, number))
        said.append(f"{target.name}: {words.milliseconds(target.latency_ms)}")
    label = f"Every timed run; the box spans p10 to p90. {'; '.join(said)}."
    return Picture(svg=Markup(charts.spread(tuple(rows))), label=label)


def _timelines(report: Report) -> list[tuple[str, Sequence[StageRecord]]]:
    """The stages of every target; of an older report, those of the report."""
    found: list[tuple[str, Sequence[StageRecord]]]
    found = [(target.name, target.stages) for target in report.targets if target.stages]
    if not found and report.stages:
        found = [(report.recipe.name, report.stages)]
    return found


def _timeline(title: str, stages: Sequence[StageRecord], figure: str) -> Picture:
    rows = [
        (f"{s.name}{' (reused)' if s.status == 'reused' else ''}", s.seconds, s.figure)
        for s in stages
    ]
    said = "; ".join(
        f"{name}: {words.figure(seconds)} s"
        + ("" if share is None else f", {figure} {words.percent(share)} after it")
        for name, seconds, share in rows
    )
    return Picture(
        svg=Markup(charts.timeline(tuple(rows), figure)), label=f"Stages of {title}. {said}."
    )


def _curves(report: Report) -> list[tuple[str, Picture]]:
    """For every stage that trains, the curves that differ between the targets."""
    stages: dict[str, dict[tuple[Epoch, ...], tuple[str, int]]] = {}
    for number, target in enumerate(report.targets):
        for stage in target.stages:
            if stage.curve:
                stages.setdefault(stage.name, {}).setdefault(stage.curve, (target.name, number))
    return [(stage, _curve(stage, found)) for stage, found in stages.items()]


def _curve(stage: str, found: dict[tuple[Epoch, ...], tuple[str, int]]) -> Picture:
    def lines(value: Callable[[Epoch], float]) -> tuple[charts.Line, ...]:
        return tuple(
            charts.Line(
                name=name if len(found) > 1 else "",
                values=tuple(value(epoch) for epoch in curve),
                colour=number if len(found) > 1 else 0,
            )
            for curve, (name, number) in found.items()
        )

    panels = [
        ("loss", "loss", lines(lambda e: e.loss)),
        ("accuracy on training images", "%", lines(lambda e: 100 * e.accuracy)),
    ]
    said = "; ".join(
        f"{name}: {words.plural(len(curve), 'epoch')}, loss {curve[0].loss:.3g} to "
        f"{curve[-1].loss:.3g}, accuracy {words.percent(curve[-1].accuracy)} at the end"
        for curve, (name, _) in found.items()
    )
    return Picture(
        svg=Markup(charts.curves(tuple(panels))), label=f"Training in stage {stage}. {said}."
    )
