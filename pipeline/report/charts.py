"""The pictures of the report, as SVG that takes its colours from the page it stands in.

Every chart has its figures in a table of the page, too; the pictures are for a glance.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 8
"""Of which the page gives every one as `--s0`, `--s1`, and so on; they repeat after that."""

# What is drawn in these is replaced by what the page says, so that a dark page has light lines.
_TEXT, _LINE = "#010101", "#020202"
_SERIES = "#0300{:02x}"
_LONGEST = 28
_KEPT = 128
"""Pictures that are not drawn again: targets share stages, and a combined report shows them all."""
_WIDTH, _ROW = 5.4, 0.3
"""Inches, as matplotlib counts them; the page scales the picture to its own width."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One file, or the float model: what it costs and how good it is.

    Attributes:
        name: shown beside it.
        cost: milliseconds of one image, or megabytes that are sent.
        figure: the primary figure, a share.
        title: name of that figure.
        megabytes: of its file.
        colour: which of the series'; None for the float model.
    """

    name: str
    cost: float
    figure: float
    title: str
    megabytes: float
    colour: int | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: x counts from 1 in steps of 1."""

    name: str
    values: tuple[float, ...]
    colour: int


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none costs as little and is as right, and better in one."""
    ordered = sorted(points, key=lambda p: (p.cost, -p.figure))
    front: list[Point] = []
    for point in ordered:
        if not front or point.figure > front[-1].figure:
            front.append(point)
    return front


@lru_cache(maxsize=_KEPT)
def trade_off(points: tuple[Point, ...], cost: str) -> str:
    """The primary figure against `cost`, a point's area as the size of its file; the Pareto front.

    Args:
        points: one for each file.
        cost: what it is, with its unit.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        largest = max(p.megabytes for p in points)
        front = pareto(points)
        axes.plot(
            [p.cost for p in front],
            [100 * p.figure for p in front],
            color=_LINE,
            linestyle="--",
            linewidth=1.2,
            zorder=1,
        )
        for point in points:
            area = 30 + 900 * point.megabytes / largest
            x, y = point.cost, 100 * point.figure
            colour = _TEXT if point.colour is None else _series(point.colour)
            # A circle at 100 % reaches past the axis.
            whole: dict[str, Any] = {"color": colour, "clip_on": False}
            axes.scatter([x], [y], s=area, alpha=0.35, linewidths=0, zorder=2, **whole)
            axes.scatter([x], [y], s=14, zorder=3, label=_short(point.name), **whole)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{cost} (fewer is better)")
        axes.set_ylabel(f"{points[0].title}, % (more is better)")
        axes.margins(x=0.2)
        _shares(axes, [100 * point.figure for point in points])
        _plain(axes)
        # Names beside the points would cover each other where files are alike.
        figure.legend(loc="lower left", ncols=2, frameon=False, fontsize=9, labelcolor=_TEXT)

    key = 0.19 * -(-len(points) // 2)
    return _drawn(draw, 3.1 + key, bottom=0.6 + key)


def _shares(axes: Axes, percent: Sequence[float]) -> None:
    """Show shares over a point at least, with room for their circles and no number past 100."""
    low, high = min(percent), max(percent)
    room = 0.35 * max(high - low, 1.0)
    ends = max(low - room, 0.0), min(high + room, 100.0)
    axes.set_ylim(*ends)
    axes.set_yticks([tick for tick in axes.get_yticks() if ends[0] <= tick <= ends[1]])
    axes.set_ylim(*ends)


@lru_cache(maxsize=_KEPT)
def bars(
    groups: tuple[tuple[str, tuple[tuple[str, float], ...], int | None], ...], unit: str
) -> str:
    """Horizontal bars: for every group its name, (label, value) of its bars, and its colour."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        labels: list[str] = []
        for name, values, colour in groups:
            for number, (label, value) in enumerate(values):
                row = len(labels)
                axes.barh(
                    row,
                    value,
                    color=_LINE if colour is None else _series(colour),
                    alpha=1.0 if number == 0 else 0.55,
                    height=0.72,
                )
                axes.annotate(
                    f" {value:.3g} {unit}", (value, row), va="center", fontsize=9, color=_TEXT
                )
                labels.append(f"{_short(name)} {label}".strip())
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.margins(x=0.2)
        _plain(axes, grid="x")

    rows = sum(len(values) for _, values, _ in groups)
    names = [f"{_short(name)} {label}" for name, values, _ in groups for label, _ in values]
    return _drawn(draw, 0.7 + _ROW * rows, left=_room(names))


@lru_cache(maxsize=_KEPT)
def spread(rows: tuple[tuple[str, tuple[float, ...], int], ...]) -> str:
    """Every sample of some latencies, in ms, with p10, median and p90 as a box."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (_, samples, colour) in enumerate(rows):
            shift = [row + 0.26 * ((i * 0.618) % 1 - 0.5) for i in range(len(samples))]
            axes.scatter(samples, shift, s=7, color=_series(colour), alpha=0.5, linewidths=0)
            axes.boxplot(
                [list(samples)],
                positions=[row],
                vert=False,
                widths=0.55,
                whis=(10, 90),
                showfliers=False,
                boxprops={"color": _TEXT},
                medianprops={"color": _TEXT},
                whiskerprops={"color": _TEXT},
                capprops={"color": _TEXT},
            )
        axes.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds for one image")
        axes.set_xlim(left=0)
        _plain(axes, grid="x")

    names = [_short(name) for name, _, _ in rows]
    return _drawn(draw, 0.7 + 1.6 * _ROW * len(rows), left=_room(names))


@lru_cache(maxsize=_KEPT)
def curves(panels: tuple[tuple[str, str, tuple[Line, ...]], ...]) -> str:
    """Lines side by side, one panel for each (title, label of the values, lines)."""

    def draw(figure: Figure) -> None:
        for axes, (title, label, lines) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for line in lines:
                steps = range(1, len(line.values) + 1)
                marker = "o" if len(line.values) < 3 else None
                axes.plot(
                    steps, line.values, color=_series(line.colour), marker=marker, label=line.name
                )
            axes.set_title(title, fontsize=10, loc="left", color=_TEXT)
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            _plain(axes)
            if len(lines) > 1:
                axes.legend(frameon=False, fontsize=8, labelcolor=_TEXT)

    return _drawn(draw, 2.6, top=0.3, between=0.35)


@lru_cache(maxsize=_KEPT)
def timeline(rows: tuple[tuple[str, float, float | None], ...], title: str) -> str:
    """The stages of a run: (name, seconds, the figure `title` where the stage measures it)."""

    def draw(figure: Figure) -> None:
        times, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        places = range(len(rows))
        times.barh(places, [seconds for _, seconds, _ in rows], color=_series(0), height=0.6)
        for place, (_, seconds, _) in enumerate(rows):
            times.annotate(f" {seconds:.3g} s", (seconds, place), va="center", fontsize=9)
        times.set_yticks(places, [_short(name) for name, _, _ in rows])
        times.invert_yaxis()
        times.set_xlabel("seconds")
        times.margins(x=0.2)
        known = [(p, 100 * share) for p, (_, _, share) in enumerate(rows) if share is not None]
        right.plot([y for _, y in known], [p for p, _ in known], color=_series(1), marker="o")
        right.set_xlabel(f"{title} after it, %")
        right.margins(x=0.15)
        _plain(times, grid="x")
        _plain(right, grid="x")

    names = [_short(name) for name, _, _ in rows]
    return _drawn(draw, 0.7 + _ROW * len(rows), left=_room(names))


@lru_cache(maxsize=_KEPT)
def heights(values: tuple[float, ...], kinds: tuple[int, ...], names: tuple[str, ...]) -> str:
    """Bits of the weights of every layer: upright bars in the order of the network.

    Args:
        values: one for each layer.
        kinds: of each layer, which decides its colour.
        names: of the kinds that there are, by their numbers.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for kind in sorted(set(kinds)):
            places = [place for place, one in enumerate(kinds, 1) if one == kind]
            drawn = [values[place - 1] for place in places]
            axes.bar(places, drawn, width=0.8, color=_series(kind), label=names[kind])
        axes.set_xlim(0, len(values) + 1)
        axes.set_ylim(0, 8.5)
        axes.set_yticks([0, 2, 4, 6, 8])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer, in the order of the network")
        axes.set_ylabel("bits of a weight")
        _plain(axes, grid="y")
        figure.legend(loc="lower left", ncols=4, frameon=False, fontsize=9, labelcolor=_TEXT)

    return _drawn(draw, 2.6, bottom=0.8)


def _series(number: int) -> str:
    return _SERIES.format(number % COLOURS)


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _plain(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, color=_LINE, linewidth=0.5, alpha=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _room(names: Sequence[str]) -> float:
    """Inches that names beside an axis take, by their letters."""
    return 0.2 + 0.075 * max(len(name) for name in names)


def _drawn(
    draw: Callable[[Figure], None],
    inches: float,
    *,
    left: float = 0.65,
    bottom: float = 0.5,
    top: float = 0.12,
    between: float = 0.12,
) -> str:
    """Draw a picture of a height; margins are given, as to find them out takes half the time."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text: smaller, sharp, and it can be searched
        "svg.hashsalt": "pocketnest",  # the same picture, byte for byte
        "text.parse_math": False,
        "font.size": 9,
        "axes.edgecolor": _LINE,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _TEXT),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), _TEXT),
    }
    written = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that matplotlib's font lacks
        figure = Figure(figsize=(_WIDTH, inches))
        figure.subplots_adjust(
            left=left / _WIDTH,
            right=1 - 0.12 / _WIDTH,
            bottom=bottom / inches,
            top=1 - top / inches,
            wspace=between,
        )
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(written.getvalue())


def _for_a_page(svg: str) -> str:
    """An `svg` element that can stand in a page beside others, in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 focusable="false">', svg)
    svg = svg.replace("xlink:href", "href")
    # Every picture numbers its parts from 1; two with the same name are not allowed on one page.
    number = _fingerprint(svg)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(
        r'\s+id="([^"]*)"',
        lambda match: f' id="{number}-{match[1]}"' if match[1] in used else "",
        svg,
    )
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{number}-", svg)
    svg = svg.replace(_TEXT, "currentColor").replace(_LINE, "var(--line)")
    for colour in range(COLOURS):
        svg = svg.replace(_SERIES.format(colour), f"var(--s{colour})")
    return svg.strip()


def renumbered(svg: str, number: int) -> str:
    """The same picture with other ids, to be shown once more on a page."""
    return re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>n{number}-", svg)


def _fingerprint(text: str) -> str:
    return f"c{hashlib.sha256(text.encode()).hexdigest()[:10]}"
