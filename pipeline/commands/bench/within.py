"""The best file of each tool among those that lose no more than some points of the float network.

A file may be as fast as one likes if it need not be right: only files that are about as right can
be told to be faster or smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.commands.bench.contestants import EAGER, OURS, Contestant
from pipeline.measure.latency import Latency
from pipeline.measure.ratios import Ratio, ratio_of

BOUNDS_PT = (0.5, 1.0)
"""Points of the primary figure that are lost at most."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The fastest file of a tool.

    Attributes:
        name: of the contestant.
        tool: that made it.
        drop_pt: points of the primary figure lost; below 0 when gained.
        milliseconds: for one image, median.
        size_bytes: of the file.
    """

    name: str
    tool: str
    drop_pt: float
    milliseconds: float
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Within:
    """The best files of one format that lose no more than `bound_pt` points.

    Attributes:
        bound_pt: points.
        format: of the files.
        runtime: that all run in.
        ours: the fastest of the runs' files; None where none is within.
        others: the fastest of every other tool, fastest first.
        ratio: how many times as fast ours is as the first of these, round by round.
    """

    bound_pt: float
    format: str
    runtime: str
    ours: Best | None
    others: tuple[Best, ...]
    ratio: Ratio | None

    @property
    def bytes_share(self) -> float | None:
        """Bytes of ours as a share of the fastest other file's."""
        if self.ours is None or not self.others:
            return None
        return self.ours.size_bytes / self.others[0].size_bytes


def drops(contestants: Sequence[Contestant]) -> dict[str, float]:
    """Points that each contestant loses of the float network's primary figure, by name."""
    float_model = next((c.accuracy for c in contestants if c.name == EAGER), None)
    if float_model is None:
        return {}
    return {
        # (0.98 - 0.97) * 100 is 1.0000000000000009.
        c.name: round(100 * (float_model.figure - c.accuracy.figure), 9)
        for c in contestants
        if c.accuracy is not None
    }


def within(contestants: Sequence[Contestant], latencies: Mapping[str, Latency]) -> list[Within]:
    """The best files for every bound and format of which any file was timed and judged.

    Args:
        contestants: those whose accuracy is not known are left out.
        latencies: on one thread, timed in turn, by name.
    """
    lost = drops(contestants)
    judged = [
        c
        for c in contestants
        if c.file is not None and c.name in latencies and c.name in lost and c.size_bytes
    ]
    groups: dict[str, list[Contestant]] = {}
    for one in judged:
        assert one.file is not None
        groups.setdefault(one.file.format, []).append(one)
    return [
        _within(bound, form, group, lost, latencies)
        for bound in BOUNDS_PT
        for form, group in groups.items()
    ]


def _within(
    bound: float,
    form: str,
    files: Sequence[Contestant],
    lost: Mapping[str, float],
    latencies: Mapping[str, Latency],
) -> Within:
    fastest: dict[str, Best] = {}
    for one in sorted(files, key=lambda file: latencies[file.name].median):
        if lost[one.name] <= bound and one.size_bytes is not None:
            best = Best(
                name=one.name,
                tool=one.tool,
                drop_pt=lost[one.name],
                milliseconds=latencies[one.name].median,
                size_bytes=one.size_bytes,
            )
            fastest.setdefault(one.tool, best)
    ours = fastest.pop(OURS, None)
    others = tuple(fastest.values())
    both = ours is not None and bool(others)
    return Within(
        bound_pt=bound,
        format=form,
        runtime=files[0].runtime,
        ours=ours,
        others=others,
        ratio=ratio_of(latencies[others[0].name], latencies[ours.name]) if both and ours else None,
    )
