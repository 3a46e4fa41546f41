"""The benchmark as a picture."""

from __future__ import annotations

from pathlib import Path

from pipeline.commands.bench.benchmark import Benchmark

_ROW_INCHES, _WIDTH_INCHES = 0.32, 9.0
_COLOURS = {"ours": "#0b6e4f", "others": "#8a8f98"}


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
    ours = {name for name in found.timed[0].latencies if name not in _others(found)}
    for axis, timed in zip(axes[0], found.timed, strict=True):
        for row, contestant in enumerate(reversed(rows)):
            taken = timed.latencies[contestant.name]
            spread = [[taken.median - taken.p10], [taken.p90 - taken.median]]
            colour = _COLOURS["ours" if contestant.name in ours else "others"]
            axis.barh(row, taken.median, xerr=spread, color=colour, height=0.7, ecolor="#222")
            axis.annotate(
                f" {taken.median:.1f}", (taken.p90, row), va="center", fontsize=8, color="#222"
            )
        axis.set_yticks(range(len(rows)), [c.name for c in reversed(rows)], fontsize=8)
        axis.set_xlabel(f"ms for one image, {timed.threads} thread{'s' * (timed.threads > 1)}")
        axis.set_xlim(0, 1.15 * max(taken.p90 for taken in timed.latencies.values()))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_title(f"{found.shape}; green: PocketNest's files", loc="left", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _others(found: Benchmark) -> set[str]:
    """What is not a file of a run."""
    return {c.name for c in found.contestants if c.made_in_s is not None or c.path is None}
