"""The ranges of activations, by all that calibration has seen of them.

    with Observed(graph) as observed:
        for images in batches:
            observed.next_batch()
            graph(images)
    observed.choose(Ranges(kind="mse"))

Every tensor's numbers are counted in a histogram, in one pass; what is chosen of it is `min_max`,
all of them, `percentile`, all but a share at both ends, or `mse`, the range whose grid is nearest
to them. The network's answers always keep all: the largest decide, and they are few. So does what
only a mean makes answers of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, fx
from torch.utils.hooks import RemovableHandle

from pipeline.compress.quantization import grid
from pipeline.compress.quantization.fake_quantize import ActivationFakeQuantize, FixedFakeQuantize
from pipeline.compress.quantization.quantizer import RULES
from pipeline.recipe.compression import RangesKind

_BINS = 4096
"""On either side of zero. A step of int8 over all that was seen is 16 bins or more."""
_SHRUNK = 100
"""Ends that are tried for a range: 1, 2, ... hundredths of the largest number."""
_TURNS = 2


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """How ranges come of the calibration images.

    Attributes:
        kind: see `QatConfig.ranges`.
        percentile: of the numbers that a range of kind `percentile` holds.
    """

    kind: RangesKind = "moving_average"
    percentile: float = 99.99


class Histogram:
    """Counts of numbers in bins of one width about zero, and the smallest and largest of them.

    These two are infinite as long as nothing was counted.

    The first numbers say how far the bins reach; where others lie beyond, that doubles, two bins
    becoming one.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.reach = 0.0
        self.counts = torch.zeros(2 * _BINS, dtype=torch.float64)

    def add(self, numbers: Tensor) -> None:
        """Count numbers, of any shape; those that are not finite make the ends so."""
        low, high = (float(end) for end in torch.aminmax(numbers))
        # Not min(): it drops what is not a number.
        self.low, self.high = (
            low if not low >= self.low else self.low,
            high if not high <= self.high else self.high,
        )
        farthest = max(-low, high)
        if not 0.0 < farthest < math.inf:
            self.counts[_BINS] += numbers.numel()
            return
        if self.reach == 0.0:
            self.reach = farthest
        while self.reach < farthest:
            self._widen()
        found = torch.histc(numbers.float(), 2 * _BINS, -self.reach, self.reach)
        self.counts += found.cpu().double()

    def _widen(self) -> None:
        pairs = self.counts.view(-1, 2).sum(1)
        quarter = torch.zeros(_BINS // 2, dtype=torch.float64)
        self.counts = torch.cat([quarter, pairs, quarter])
        self.reach *= 2

    @property
    def centres(self) -> Tensor:
        """The number in the middle of every bin, float64 [bins]."""
        width = self.reach / _BINS
        return (torch.arange(2 * _BINS, dtype=torch.float64) - _BINS + 0.5) * width

    def percentile(self, share: float) -> tuple[float, float]:
        """The ends that `share` percent of the numbers lie within, as many beyond either end."""
        cut = (1 - share / 100) / 2 * float(self.counts.sum())
        width = self.reach / _BINS
        # The outer edges of the first and the last bin that are left.
        first = int((self.counts.cumsum(0) > cut).int().argmax())
        last = 2 * _BINS - 1 - int((self.counts.flip(0).cumsum(0) > cut).int().argmax())
        low, high = (first - _BINS) * width, (last + 1 - _BINS) * width
        return max(low, self.low), min(high, self.high)

    def nearest(self) -> tuple[float, float]:
        """The ends of the grid whose numbers are nearest to those counted: least squares.

        One end after the other is moved towards zero, the other as it was found last.
        """
        low, high = self.low, self.high
        used = self.counts > 0
        centres, counts = self.centres[used], self.counts[used]
        shares = torch.arange(1, _SHRUNK + 1, dtype=torch.float64) / _SHRUNK
        for _ in range(_TURNS if low < 0.0 < high else 1):
            if high > 0.0:
                ends = shares * self.high
                high = float(ends[_errors(centres, counts, torch.tensor(low), ends).argmin()])
            if low < 0.0:
                ends = shares * self.low
                low = float(ends[_errors(centres, counts, ends, torch.tensor(high)).argmin()])
        return low, high


def _errors(centres: Tensor, counts: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Sum of the squares of what grids over ranges `low` to `high` make of numbers, of each."""
    low, high = low.float() + torch.zeros_like(high), high.float() + torch.zeros_like(low)
    scale, zero_point = grid.activation_grid(low, high)
    scale, zero = scale.double()[:, None], zero_point.double()[:, None]
    steps = torch.clamp(torch.round(centres / scale) + zero, grid.QMIN, grid.QMAX)
    return ((steps - zero).mul_(scale).sub_(centres).square_() * counts).sum(1)


class Observed:
    """Counts what passes every learned grid of a graph, as long as it is entered."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._histograms: dict[ActivationFakeQuantize, Histogram] = {}
        self._handles: list[RemovableHandle] = []
        self._seen: set[ActivationFakeQuantize] = set()

    def __enter__(self) -> Observed:
        for module in self._graph.modules():
            learned = not isinstance(module, FixedFakeQuantize)
            if isinstance(module, ActivationFakeQuantize) and learned:
                histogram = self._histograms.setdefault(module, Histogram())
                self._handles.append(module.register_forward_pre_hook(self._counter(histogram)))
        return self

    def next_batch(self) -> None:
        """Say that other images follow."""
        self._seen.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _counter(
        self, histogram: Histogram
    ) -> Callable[[ActivationFakeQuantize, tuple[Tensor]], None]:
        def count(module: ActivationFakeQuantize, given: tuple[Tensor]) -> None:
            # Called again, it is given numbers that were only moved or picked.
            if module not in self._seen:
                self._seen.add(module)
                histogram.add(given[0])

        return count

    def choose(self, ranges: Ranges) -> None:
        """Give every grid that was observed its range; those that share one, all of theirs."""
        whole = answering(self._graph)
        seen = {one: found for one, found in self._histograms.items() if found.low != math.inf}
        for module, histogram in seen.items():
            ends = _chosen(histogram, Ranges(kind="min_max") if module in whole else ranges)
            module.low.fill_(ends[0])
            module.high.fill_(ends[1])
        for module in seen:
            module.take_ranges()


def _chosen(histogram: Histogram, ranges: Ranges) -> tuple[float, float]:
    whole = histogram.low, histogram.high
    counted = histogram.reach > 0.0 and all(map(math.isfinite, whole))
    if not counted or ranges.kind == "min_max":
        return whole
    if ranges.kind == "percentile":
        return histogram.percentile(ranges.percentile)
    return histogram.nearest()


def answering(graph: fx.GraphModule) -> set[ActivationFakeQuantize]:
    """What rounds the answers of a graph, or what is only moved, picked or averaged to them."""
    found: set[ActivationFakeQuantize] = set()
    waiting = list(next(n for n in graph.graph.nodes if n.op == "output").all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            if isinstance(module, ActivationFakeQuantize):
                found.update(module.tied)
        passes = RULES.get(node.target) == "input" or node.target is torch.ops.aten.mean.dim
        if node.op == "call_module" or passes:
            waiting += node.all_input_nodes
    return found
