"""The lane of this machine: files run in this process, each in its own runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline.base.errors import reading
from pipeline.base.machine import host_info
from pipeline.formats.formats import FORMATS
from pipeline.measure.lanes.lane import Advance, Lane, ModelFile, Rounds, silent

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.formats.format import Runnable
    from pipeline.measure.first_use import FirstUse
    from pipeline.measure.latency import Latency


def cannot_time(form: str) -> str | None:
    """Why this host cannot time files of a format; None where it can."""
    return FORMATS[form].module().cannot_time()


def answers(
    files: Mapping[str, ModelFile],
    inputs: Iterable[Tensor],
    threads: int,
    advance: Advance = silent,
) -> dict[str, Tensor]:
    """What files answer here; see `lane.Answers`."""
    import torch

    from pipeline.measure.timing import run_images

    opened = {name: _opened(file, threads) for name, file in files.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in files}
    done = 0
    with torch.inference_mode():
        for images in inputs:
            for name, runnable in opened.items():
                with reading(files[name].path):
                    found[name].append(run_images(runnable, images))
            done += len(images)
            advance(done)
    return {name: torch.cat(parts) for name, parts in found.items()}


def times(
    files: Mapping[str, ModelFile],
    inputs: Mapping[str, Tensor],
    threads: int,
    rounds: Rounds,
    beside: Mapping[str, Callable[[], object]] | None = None,
    advance: Advance = silent,
) -> dict[str, Latency]:
    """How long files take here, in turn with calls of this process; see `lane.Times`."""
    from pipeline.measure import timing

    runs: dict[str, Callable[[], object]] = dict(beside or {})
    for name, file in files.items():
        runnable = _opened(file, threads)
        with reading(file.path):
            runnable.set_input(inputs[name].numpy())
            runnable.invoke()
        runs[name] = runnable.invoke
    if rounds.settled:
        return timing.compared(runs, rounds=rounds.count, threads=threads)
    return timing.interleaved(
        runs,
        warmup=rounds.warmup,
        rounds=rounds.count,
        threads=threads,
        untimed=rounds.untimed,
        advance=advance,
    )


def first_use(file: ModelFile, image: Tensor, threads: int) -> FirstUse:
    """What a file costs here before its second answer; see `lane.FirstUses`."""
    from pipeline.measure import first_use as of_file

    def opened() -> Runnable:
        runnable = _opened(file, threads)
        runnable.set_input(image.numpy())
        return runnable

    with reading(file.path):
        return of_file.first_use(opened, image)


def _opened(file: ModelFile, threads: int) -> Runnable:
    with reading(file.path):
        return FORMATS[file.format].module().open_file(file.path, threads)


LANE = Lane(
    title="this machine",
    machine=host_info,
    cannot_time=cannot_time,
    answers=answers,
    times=times,
    first_use=first_use,
    takes_calls=True,
)
