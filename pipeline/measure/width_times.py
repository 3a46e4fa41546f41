"""How long a file of other widths takes: predicted from layers timed in the target's runtime.

The file of the unpruned network is cut to several random widths (a format's `layers`),
each of its layers is timed there, and a layer's time is fitted to its channels. Whole files are
timed too, in turn: a file's layers add up to less or more than the file, and a machine's speed
changes, so that layers count as shares of their file.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.compress.pruning.costs import Cost, Term, Widths
from pipeline.compress.pruning.groups import Group
from pipeline.compress.pruning.kept import Kept
from pipeline.compress.pruning.widths import Plan, choose
from pipeline.formats.format import LayersModule
from pipeline.formats.formats import FORMATS
from pipeline.measure import timing
from pipeline.measure.attempt import Attempt
from pipeline.measure.file_layers import FileLayer, sized_layers
from pipeline.measure.latency import Latency

SAMPLES, HELD_OUT = 12, 3
"""Files of random widths that the fit sees, and further ones that it is judged by."""

_LAYER_ROUNDS = 15
_ATTEMPTS, _CLOSE = 6, 0.02

_TILES = (1, 8, 16, 32, 64)

Factors = tuple[float, float, float, float]
"""What a product of channels, an input, an output and a call take, in milliseconds."""


def random_widths(groups: Sequence[Group], round_to: int, seed: int) -> dict[str, int]:
    """A width for every group, each as likely; narrow and wide neighbours show what is whose."""
    chance = random.Random(seed)
    widths = {}
    for group in groups:
        step = math.lcm(round_to, group.parts)
        most = group.channels // step
        widths[group.name] = chance.randint(1, most) * step if most else group.channels
    return widths


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One file: its widths, its time, and that of its layers, in milliseconds."""

    widths: dict[str, int]
    milliseconds: float
    layers: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TimedFile:
    """The unpruned file and how it is timed.

    Attributes:
        content: of the file.
        format_name: of `FORMATS`, one whose layers can be timed.
        layers: of the file.
        groups: of its channels.
        kept: layers of the network whose channels all stay.
        image: (1, 3, side, side) that it is run on.
        threads: of the runtime.
        rounds: of whole files, timed in turn.
    """

    content: bytes
    format_name: str
    layers: tuple[FileLayer, ...]
    groups: tuple[Group, ...]
    kept: tuple[Kept, ...]
    image: NDArray[np.float32]
    threads: int
    rounds: int

    @property
    def module(self) -> LayersModule:
        """What cuts and times files of the format."""
        layers = FORMATS[self.format_name].layers
        assert layers is not None, f"the layers of {self.format_name} files cannot be timed"
        return layers()

    def at(self, widths: Widths) -> bytes:
        """The file at other widths; its weights mean nothing."""
        return self.module.resized(self.content, sized_layers(self.layers, widths))

    def time(self, contents: Sequence[bytes]) -> list[Latency]:
        """Time files in turn, one image each."""
        form = FORMATS[self.format_name]
        runs = {}
        with tempfile.TemporaryDirectory() as scratch:
            for index, content in enumerate(contents):
                path = Path(scratch, f"{index}{form.suffix}")
                path.write_bytes(content)
                runnable = form.module().open_file(path, self.threads)
                runnable.set_input(self.image)
                runs[str(index)] = runnable.invoke
        taken = timing.compared(runs, rounds=self.rounds, threads=self.threads)
        return [taken[str(index)] for index in range(len(contents))]


def take_samples(file: TimedFile, round_to: int) -> list[Sample]:
    """Time the unpruned file and files of random widths, whole and layer by layer.

    Args:
        file: the unpruned one.
        round_to: widths are multiples of this.
    """
    assigned = [{group.name: group.channels for group in file.groups}]
    assigned += [random_widths(file.groups, round_to, seed) for seed in range(SAMPLES + HELD_OUT)]
    contents = [file.at(widths) for widths in assigned]
    return [
        Sample(
            widths=widths,
            milliseconds=taken.median,
            layers=file.module.layer_times(content, rounds=_LAYER_ROUNDS, threads=file.threads),
        )
        for widths, content, taken in zip(assigned, contents, file.time(contents), strict=True)
    ]


def measured_share(file: TimedFile, widths: Widths) -> float:
    """Time of the file at `widths` as a share of the unpruned one's: median of paired runs."""
    whole, narrow = file.time([file.content, file.at(widths)])
    pairs = zip(narrow.samples_ms, whole.samples_ms, strict=True)
    return float(np.median([after / before for after, before in pairs]))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A kind of layer: the tile its outputs are computed in, and what it takes."""

    tile: int
    factors: Factors


@dataclass(frozen=True, kw_only=True)
class PredictedTimes:
    """A cost in milliseconds, and how far it is off.

    Attributes:
        cost: by widths.
        errors: (predicted - measured) / measured of the files that the fit has not seen.
    """

    cost: Cost
    errors: tuple[float, ...]


def fit(layers: Sequence[FileLayer], samples: Sequence[Sample]) -> PredictedTimes:
    """Fit every kind of layer's time to its channels, by least squares with no negative factor.

    `t = a C_i C_o + b C_i + c C_o + d`: multiply-accumulates, input and output that pass through
    memory, and the cost of a call. Errors count as shares of the time. Runtimes compute outputs in
    tiles (XNNPACK 64 channels wide with AMX, 8 or 16 on most CPUs), so that C_o counts in whole
    tiles, of the size that fits a kind of layer best.

    Args:
        layers: of the unpruned file.
        samples: from `take_samples`.
    """
    seen, held_out = samples[:-HELD_OUT], samples[-HELD_OUT:]
    fits = _fits(layers, seen)
    terms = tuple(
        Term(
            layer=layer.place,
            groups=layer.groups,
            value=partial(_milliseconds, layer, fits[layer.kind]),
        )
        for layer in layers
        if layer.kind in fits
    )
    cost = Cost(terms=terms)
    errors = tuple(cost.of(s.widths) / s.milliseconds - 1 for s in held_out)
    return PredictedTimes(cost=cost, errors=errors)


def _fits(layers: Sequence[FileLayer], samples: Sequence[Sample]) -> dict[str, Fit]:
    """Of every kind of layer: its tile and factors."""
    timed: defaultdict[str, list[tuple[FileLayer, Widths, float]]] = defaultdict(list)
    for sample in samples:
        known = [layer for layer in layers if layer.name in sample.layers]
        # A file's layers count as shares of the file, which was timed in turn with the others;
        # what the runtime adds at its ends is spread over them.
        scale = sample.milliseconds / sum(sample.layers[layer.name] for layer in known)
        for layer in known:
            timed[layer.kind].append((layer, sample.widths, sample.layers[layer.name] * scale))
    return {kind: _fit_kind(found) for kind, found in timed.items()}


def _fit_kind(timed: Sequence[tuple[FileLayer, Widths, float]]) -> Fit:
    times = np.array([milliseconds for _, _, milliseconds in timed])
    fits = []
    for tile in _TILES:
        rows = np.array([(*layer.features(widths, tile), 1.0) for layer, widths, _ in timed])
        error, factors = _nonnegative(rows, times)
        fits.append((error, Fit(tile=tile, factors=factors)))
    return min(fits, key=lambda found: found[0])[1]


def _nonnegative(
    features: NDArray[np.float64], times: NDArray[np.float64]
) -> tuple[float, Factors]:
    """Least squares of relative errors, no factor below 0: the mean square and the factors."""
    from scipy.optimize import nnls

    weights = 1 / np.maximum(times, 1e-6)
    # Scaled to at most 1: the factors differ by orders of magnitude.
    largest = features.max(axis=0)
    scaled, _ = nnls(features / largest * weights[:, None], times * weights)
    factors = scaled / largest
    a, b, c, d = (float(factor) for factor in factors)
    return float(np.mean((features @ factors * weights - 1) ** 2)), (a, b, c, d)


def _milliseconds(layer: FileLayer, fitted: Fit, widths: Widths) -> float:
    products, inputs, outputs = layer.features(widths, fitted.tile)
    a, b, c, d = fitted.factors
    return a * products + b * inputs + c * outputs + d


def choose_in_time(
    plan: Plan, limit: float, whole: float, scope: str, measured: Callable[[Widths], float]
) -> list[Attempt]:
    """Choose widths for a time, time a file of them, and correct the prediction until it holds.

    Args:
        plan: whose cost is a predicted time.
        limit: of the predicted time.
        whole: predicted time of the unpruned file.
        scope: as for `choose`.
        measured: share of the unpruned file's time that a file of these widths takes.

    Returns:
        Every attempt; the first is the prediction as it was, the best is `nearest`.
    """
    present, floor = plan.cost.of(plan.present()), plan.cost.of(plan.floor())
    wanted, aimed = limit / whole, limit
    attempts: list[Attempt] = []
    for _ in range(_ATTEMPTS):
        widths = choose(plan, aimed, scope)
        predicted, took = plan.cost.of(widths) / whole, measured(widths)
        attempts.append(Attempt(widths=widths, predicted=predicted, measured=took))
        if abs(took / wanted - 1) <= _CLOSE:
            break
        aimed = min(present, max(floor, _next_aim(attempts, wanted) * whole))
    return attempts


def _next_aim(attempts: Sequence[Attempt], wanted: float) -> float:
    """The predicted share to try next: on the line through the nearest attempts on both sides.

    The unpruned file stands for the slower side, and for the faster one the assumption that time
    is saved in the same proportion as far as was seen.
    """
    slower = [a for a in attempts if a.measured > wanted]
    faster = [a for a in attempts if a.measured <= wanted]
    above, below = (1.0, 1.0), None
    if slower:
        best = min(slower, key=lambda a: a.measured)
        above = (best.predicted, best.measured)
    if faster:
        best = max(faster, key=lambda a: a.measured)
        below = (best.predicted, best.measured)
    if below is None:
        return 1 - (1 - above[0]) * (1 - wanted) / max(1 - above[1], 1e-3)
    slope = (above[0] - below[0]) / max(above[1] - below[1], 1e-6)
    return below[0] + slope * (wanted - below[1])


def nearest(attempts: Sequence[Attempt], share: float) -> Attempt:
    """The attempt whose measured time is nearest to a share of the unpruned file's."""
    return min(attempts, key=lambda attempt: abs(attempt.measured / share - 1))
