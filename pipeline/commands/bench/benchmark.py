"""One benchmark: everything timed in turn, then judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.base.console import Advance
from pipeline.base.errors import reading
from pipeline.base.machine import code_info, cpu_flags, tool_versions
from pipeline.commands.bench import bars as bars_of
from pipeline.commands.bench.contestants import (
    EAGER,
    Contestant,
    first,
    of_peer,
    of_run,
    of_torch,
    refuse_same_names,
    timed_network,
)
from pipeline.commands.bench.newer import Newer
from pipeline.commands.bench.peer_files import peer_files
from pipeline.commands.bench.within import Within, drops, within
from pipeline.formats.formats import FORMATS
from pipeline.measure.lanes.lane import Counting, Lane, ModelFile, Rounds
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.latency import Latency, latency_of
from pipeline.measure.ratios import Ratio, ratio_of
from pipeline.measure.roofline import Roofline, has_peak, roofline
from pipeline.recipe.input_shape import InputShape
from pipeline.stages.carried import first_image
from pipeline.stages.finished_run import Finished
from pipeline.tasks.tasks import task_of

THREADS = (1, 2)
_WARMUP = 3

Tracked = Callable[[str, int], AbstractContextManager[Advance]]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Every contestant that could be timed, on so many threads.

    Attributes:
        threads: of every runtime.
        latencies: by name, taken in turn.
        speedups: over torch eager, by name; none on a lane that runs files alone.
    """

    threads: int
    latencies: dict[str, Latency]
    speedups: dict[str, Ratio]


@dataclass(frozen=True, kw_only=True)
class CountedFile:
    """Instructions of one inference of a contestant's file; no time.

    Attributes:
        total: all of them.
        products: those that multiply int8 numbers.
        least: what the file's multiply-accumulates alone would take; None where they are not known.
    """

    total: int
    products: int
    least: int | None


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was compared and what came out.

    Attributes:
        lane: key of `LANES`.
        shape: of the image.
        contestants: in the order of the table.
        timed: by number of threads; none on a lane that counts.
        counted: by name, on a lane that counts instructions.
        within: the best files of every format within some points of float, on one thread.
        upgrades: how many times as fast a file is in a newer runtime as here, on one thread, by
            the name of the contestant there.
        rooflines: of the int8 files of runs, on one thread, by name.
        outcomes: of the bars that were asked for.
    """

    lane: str
    shape: InputShape
    contestants: tuple[Contestant, ...]
    timed: tuple[Timed, ...]
    counted: dict[str, CountedFile]
    within: tuple[Within, ...]
    upgrades: dict[str, Ratio]
    rooflines: dict[str, Roofline]
    outcomes: tuple[bars_of.Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether no bar is missed; what is undecided or not asked was not missed."""
        return all(outcome.verdict != "missed" for outcome in self.outcomes)


def benchmark(
    runs: Sequence[Finished],
    *,
    rounds: int,
    peers: Path | None,
    bars: Sequence[bars_of.Bar],
    lane: str,
    tracked: Tracked,
    newer: Sequence[Newer] = (),
) -> Benchmark:
    """Time the files of runs of one network, torch, and what other tools make of the network.

    Args:
        runs: of one float network.
        rounds: in which each is timed once.
        peers: folder for the files of other tools; None leaves them out.
        bars: to hold the result against.
        lane: key of `LANES`, where all are timed.
        tracked: a progress bar.
        newer: environments with newer runtimes, which time all files once more.

    Raises:
        InputError: the runs are of different networks, or what other tools start from is missing:
            the float weights, or the images.
    """
    place = LANES[lane]
    contestants = _contestants(runs, peers, place, tracked, newer)
    counting = place.counting
    timed = tuple(
        _time(place, contestants, threads, rounds, tracked)
        for threads in (THREADS if counting is None else ())
    )
    counted = {} if counting is None else _count(counting, contestants)
    alone: Mapping[str, Latency] = timed[0].latencies if timed else {}
    # The peak is that of this machine.
    rooflines = _rooflines(runs, alone) if lane == HOST else {}
    alike = within(contestants, alone)
    measured = bars_of.Measured(
        latencies=alone,
        accuracies={c.name: c.accuracy for c in contestants if c.accuracy is not None},
        within=alike,
        cpu=cpu_flags(),
    )
    return Benchmark(
        lane=lane,
        shape=runs[0].recipe.model.input_shape,
        contestants=tuple(contestants),
        timed=timed,
        counted=counted,
        within=tuple(alike),
        upgrades=_upgrades(contestants, alone),
        rooflines=rooflines,
        outcomes=tuple(bars_of.judge(bars, measured)),
    )


def _contestants(
    runs: Sequence[Finished],
    peers: Path | None,
    place: Lane,
    tracked: Tracked,
    newer: Sequence[Newer],
) -> list[Contestant]:
    """Everything that is timed, in the order of the table."""
    network = timed_network(runs, trained=peers is not None)
    shown = first_image(runs[0])
    accuracy = first(runs[0].report().baseline.accuracy)
    found = of_torch(network, shown, accuracy, place, variants=peers is not None)
    if peers is not None:
        assert network.model is not None  # or its weights would have been missed
        dataset = runs[0].dataset()
        for peer in peer_files(runs[0], network.model, dataset, peers, tracked):
            found.append(of_peer(peer, dataset, task_of(runs[0].recipe), place))
    found += [of_run(run, shown, place) for run in runs]
    found += [other for one in newer for other in one.contestants(found)]
    refuse_same_names(found)
    return found


def _upgrades(
    contestants: Sequence[Contestant], latencies: Mapping[str, Latency]
) -> dict[str, Ratio]:
    """How many times as fast each file is in a newer runtime as in this environment's."""
    return {
        c.name: ratio_of(latencies[c.same_as], latencies[c.name])
        for c in contestants
        if c.same_as is not None and c.same_as in latencies and c.name in latencies
    }


def _count(counting: Counting, contestants: Sequence[Contestant]) -> dict[str, CountedFile]:
    """Instructions of every file that the lane can run."""
    files = {c.name: c.file for c in contestants if c.file is not None}
    images = {c.name: c.image for c in contestants if c.image is not None}
    found = {}
    for name, file in files.items():
        of = counting.counts({name: file}, {name: images[name]})[name]
        least = _least(counting, file)
        found[name] = CountedFile(total=of.total, products=of.products, least=least)
    return found


def _least(counting: Counting, file: ModelFile) -> int | None:
    """Of a file, which may be another tool's and hold what is not read here."""
    try:
        facts = FORMATS[file.format].module().inspect(file.path)
    except (ValueError, LookupError, AttributeError, RuntimeError):
        return None
    return counting.least(int(facts.int8_macs), int(facts.macs))


def _time(
    lane: Lane, contestants: Sequence[Contestant], threads: int, rounds: int, tracked: Tracked
) -> Timed:
    calls = {c.name: c.call(threads) for c in contestants if c.call is not None}
    files = {c.name: c.file for c in contestants if c.file is not None}
    images = {c.name: c.image for c in contestants if c.image is not None}
    clocks = {c.name: c.clock for c in contestants if c.name in calls and c.clock is not None}
    there: dict[str, list[float]] = {name: [] for name in clocks}

    def noted(done: int) -> None:
        for name, clock in clocks.items():
            there[name].append(clock())
        advance(done, "")

    with tracked(f"rounds on {threads} thread{'s' * (threads > 1)}", rounds) as advance:
        latencies = lane.times(
            files,
            images,
            threads,
            Rounds(warmup=_WARMUP, count=rounds, untimed=1),
            beside=calls,
            advance=noted,
        )
    latencies |= {name: latency_of(samples, threads, 1) for name, samples in there.items()}
    eager = latencies.get(EAGER)
    speedups = {n: ratio_of(eager, taken) for n, taken in latencies.items()} if eager else {}
    return Timed(threads=threads, latencies=latencies, speedups=speedups)


def _rooflines(runs: Sequence[Finished], latencies: Mapping[str, Latency]) -> dict[str, Roofline]:
    targets = {run.recipe.name: (run, run.recipe.target) for run in runs}
    found = {}
    for name, (run, target) in targets.items():
        if name in latencies and target.precision == "int8" and has_peak(target.format):
            with reading(run.file):
                found[name] = roofline(run.file, target.format, target.precision, threads=1)
    return found


def as_json(found: Benchmark) -> dict[str, Any]:
    """The benchmark as plain JSON, with the machine and the versions of everything."""
    lost = drops(found.contestants)
    contestants = [
        {
            # Of the folder it lies in: where that lies is nobody else's business.
            key: f"{value.parent.name}/{value.name}" if isinstance(value, Path) else value
            for key, value in vars(contestant).items()
            if key not in {"call", "clock", "file", "image", "accuracy"}
        }
        | {
            "accuracy": contestant.accuracy and contestant.accuracy.model_dump(),
            "drop_pt": lost.get(contestant.name),
        }
        for contestant in found.contestants
    ]
    return {
        "lane": found.lane,
        "host": LANES[found.lane].machine().model_dump(),
        "code": code_info().model_dump(),
        "tools": tool_versions(),
        "side": found.shape.sides,
        "contestants": contestants,
        "timed": [
            {
                "threads": timed.threads,
                "latency_ms": {n: taken.model_dump() for n, taken in timed.latencies.items()},
                "speedup_over_eager": {n: asdict(ratio) for n, ratio in timed.speedups.items()},
            }
            for timed in found.timed
        ],
        "instructions": {name: asdict(counted) for name, counted in found.counted.items()},
        "within": [asdict(one) | {"bytes_share": one.bytes_share} for one in found.within],
        "upgrades": {name: asdict(ratio) for name, ratio in found.upgrades.items()},
        "rooflines": {name: asdict(roof) for name, roof in found.rooflines.items()},
        "bars": [asdict(outcome) for outcome in found.outcomes],
        "passed": found.passed,
    }


def write_json(found: Benchmark, path: Path) -> None:
    """Write the benchmark to `path`."""
    path.write_text(json.dumps(as_json(found), indent=1), encoding="utf-8")
