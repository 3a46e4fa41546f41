"""The stage that judges and times the file."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import torch
from pydantic import Field

from pipeline.base.errors import reading
from pipeline.base.machine import utc_now
from pipeline.base.profile import span
from pipeline.base.record import Positive, Record, Sha256, Text, UtcTime
from pipeline.measure.downloads import Download, downloads
from pipeline.measure.first_use import FirstUse
from pipeline.measure.lanes.lane import Rounds
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.latency import Latency
from pipeline.stages.context import LOGITS, Context, Inputs, fed, first_figure, float_model
from pipeline.stages.exported import file_of, model_file
from pipeline.stages.stage import CORE, IMAGES, LANE, QUANTIZING, Stage, StageFacts
from pipeline.stages.times import unpruned_file
from pipeline.tasks.accuracy import AnyAccuracy
from pipeline.tasks.predictions import NAMED


class BesideFloat(Record):
    """Latencies of the float network and the file, timed in turn."""

    float_model: Latency
    target: Latency


class BesideUnpruned(Record):
    """Latencies of the unpruned network's file and the file, timed in turn."""

    unpruned: Latency
    target: Latency

    @property
    def share(self) -> float:
        """Median over paired runs of the file's time to the unpruned one's."""
        pairs = zip(self.target.samples_ms, self.unpruned.samples_ms, strict=True)
        return float(median(ours / whole for ours, whole in pairs))


class MeasureFacts(StageFacts):
    """Accuracy, size and latency of the file.

    Attributes:
        sha256: of the file, or of the names and contents of a package's files.
        size_bytes: on disk.
        downloads: the bytes that each compressor makes of it; deflate, as app stores send it,
            first.
        accuracy: by test set.
        cannot_time: why the file is not timed on this host; None where it is.
        latency: by number of threads; empty where it cannot be timed.
        first_use: what the file costs before its second answer; None where it cannot be timed.
        measured_at: when, in UTC.
        beside_unpruned: where the pruning was to reach a time.
    """

    sha256: Sha256
    size_bytes: Positive
    downloads: Annotated[tuple[Download, ...], Field(min_length=1)]
    accuracy: dict[str, AnyAccuracy]
    cannot_time: Text | None
    latency: dict[str, BesideFloat]
    first_use: FirstUse | None
    measured_at: UtcTime
    beside_unpruned: BesideUnpruned | None


def measure(context: Context, inputs: Inputs, out: Path) -> MeasureFacts:
    """Accuracy, size and latency of the exported file."""
    from pipeline.measure import timing

    file = file_of(context, inputs)
    with reading(inputs["verify"] / LOGITS):
        logits = torch.load(inputs["verify"] / LOGITS, weights_only=True)
    accuracy = context.task.accuracies(logits, context.dataset)
    context.task.keep(logits, context.dataset, out / NAMED)
    why_not = LANES[HOST].cannot_time(context.recipe.target.format)
    return MeasureFacts(
        sha256=timing.sha256_of(file),
        size_bytes=timing.size_bytes(file),
        downloads=_downloads(file),
        accuracy=accuracy,
        cannot_time=why_not,
        latency=_times(context, inputs) if why_not is None else {},
        first_use=_first_use(context, inputs) if why_not is None else None,
        measured_at=utc_now(),
        beside_unpruned=_beside_unpruned(context, inputs) if "times" in inputs else None,
        figure=first_figure(accuracy),
    )


@span("compress", "the file")
def _downloads(file: Path) -> tuple[Download, ...]:
    return downloads(file)


@span("time", "first use")
def _first_use(context: Context, inputs: Inputs) -> FirstUse | None:
    from pipeline.measure import timing

    ask, threads = LANES[HOST].first_use, context.recipe.target.threads
    if ask is None:
        return None
    file = model_file(context, file_of(context, inputs))
    return ask(file, timing.first_image(fed(context).dataset), threads)


@span("time", "the file and the float network")
def _times(context: Context, inputs: Inputs) -> dict[str, BesideFloat]:
    """Latencies of the float network and the file, timed in turn, by number of threads."""
    from pipeline.measure import timing

    recipe = context.recipe
    network = timing.float_run(float_model(context, inputs), timing.first_image(context.dataset))
    # As `bench` times: a file must not pay for the float network having emptied the caches.
    rounds = Rounds(warmup=recipe.measure.warmup, count=recipe.measure.rounds, untimed=1)
    timed = {}
    for threads in sorted({1, recipe.target.threads}):
        taken = LANES[HOST].times(
            {"target": model_file(context, file_of(context, inputs))},
            {"target": timing.first_image(fed(context).dataset)},
            threads,
            rounds,
            beside={"float": network},
        )
        timed[str(threads)] = BesideFloat(float_model=taken["float"], target=taken["target"])
    return timed


def _beside_unpruned(context: Context, inputs: Inputs) -> BesideUnpruned:
    """Latencies of the file and that of the unpruned network, timed in turn.

    Without the float network between them: its weights would push both files' out of the caches,
    and the file that runs after it would pay for that.
    """
    from pipeline.measure import timing

    files = {
        "target": model_file(context, file_of(context, inputs)),
        "unpruned": model_file(context, unpruned_file(context, inputs)),
    }
    image = timing.first_image(fed(context).dataset)
    rounds = Rounds(warmup=0, count=context.recipe.measure.rounds, settled=True)
    threads = context.recipe.target.threads
    taken = LANES[HOST].times(files, dict.fromkeys(files, image), threads, rounds)
    return BesideUnpruned(unpruned=taken["unpruned"], target=taken["target"])


STAGE = Stage(
    name="measure",
    make=measure,
    facts=MeasureFacts,
    after=("export", "verify", "train", "times"),
    reads=("task", "target", "measure", "threads"),
    code=(
        *(*CORE, *LANE, "formats", "measure/timing.py", "measure/latency.py"),
        *("measure/first_use.py", "measure/downloads.py"),
        *("stages/exported.py", "stages/measure.py", "stages/times.py"),
    ),
    packages=(*IMAGES, *QUANTIZING, "zstandard"),
    of_format=True,
    sees_tests=True,
    on_host=True,
)
