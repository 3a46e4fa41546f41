"""The benchmark as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commands.bench.benchmark import Benchmark
from pipeline.commands.bench.contestants import OURS, Contestant
from pipeline.commands.bench.within import BOUNDS_PT, drops

_ROW_INCHES, _WIDTH_INCHES = 0.32, 9.0
_COLOURS = {"ours": "#0b6e4f", "others": "#8a8f98"}
_FAINT = (1.0, 0.6, 0.3)
"""How strong a bar is drawn: within the first bound of accuracy, within the last, and beyond."""


def write_plot(found: Benchmark, path: Path) -> None:
    """Draw the median of every contestant, for each number of threads, with p10 and p90.

    Args:
        found: what to draw.
        path: of the SVG file.
    """
    # It takes a second to import, and only this picture needs it.
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pocketnest"  # the same picture, byte for byte
    from matplotlib import pyplot

    rows = [c for c in found.contestants if c.name in found.timed[0].latencies]
    height = _ROW_INCHES * len(rows) + 1.2
    figure, axes = pyplot.subplots(
        1, len(found.timed), figsize=(_WIDTH_INCHES, height), sharey=True, squeeze=False
    )
    lost = drops(found.contestants)
    for axis, timed in zip(axes[0], found.timed, strict=True):
        for row, contestant in enumerate(reversed(rows)):
            taken = timed.latencies[contestant.name]
            spread = [[taken.median - taken.p10], [taken.p90 - taken.median]]
            colour = _COLOURS["ours" if contestant.tool == OURS else "others"]
            bar: dict[str, Any] = {"color": colour, "alpha": _strength(contestant, lost)}
            axis.barh(row, taken.median, xerr=spread, height=0.7, ecolor="#222", **bar)
            axis.annotate(
                f" {taken.median:.1f}", (taken.p90, row), va="center", fontsize=8, color="#222"
            )
        axis.set_yticks(range(len(rows)), [_label(c, lost) for c in reversed(rows)], fontsize=8)
        axis.set_xlabel(f"ms for one image, {timed.threads} thread{'s' * (timed.threads > 1)}")
        axis.set_xlim(0, 1.15 * max(taken.p90 for taken in timed.latencies.values()))
        axis.spines[["top", "right"]].set_visible(False)
    bounds = " and ".join(f"{bound:g}" for bound in BOUNDS_PT)
    title = f"{found.shape}; green: PocketNest's files; faint: not within {bounds} points of float"
    axes[0][0].set_title(title, loc="left", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _label(contestant: Contestant, lost: Mapping[str, float]) -> str:
    drop = lost.get(contestant.name)
    return contestant.name if drop is None else f"{contestant.name} ({0.0 - drop:+.2f} pt)"


def _strength(contestant: Contestant, lost: Mapping[str, float]) -> float:
    """By the accuracy of a file; in another runtime, of the same file here."""
    drop = lost.get(contestant.same_as or contestant.name)
    beyond = 0 if drop is None else sum(drop > bound for bound in BOUNDS_PT)
    return _FAINT[beyond]
