"""The lane of this machine: files run in this process, each in its own runtime."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
    """What files answer here; see `lane.Answers`.

    As many batches are answered at the same time as there are threads, each on one thread by a
    file opened for it. Runtimes let go of the interpreter's lock, so no image is copied between
    processes. An answer does not depend on the number of threads: an arithmetic in float32 sums in
    another order on several. A batch more than that is held, whatever the number of images.
    """
    import torch

    together = 1 if any(map(_chooses_its_threads, files.values())) else threads
    answer = _Answering(files, threads if together == 1 else 1)
    found: dict[str, list[Tensor]] = {name: [] for name in files}
    waiting: deque[Future[dict[str, Tensor]]] = deque()
    done = 0

    def take() -> None:
        nonlocal done
        parts = waiting.popleft().result()
        for name, part in parts.items():
            found[name].append(part)
        done += len(part)
        advance(done)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(together) as pool:
            for images in inputs:
                waiting.append(pool.submit(answer, images))
                if len(waiting) > together:
                    take()
            while waiting:
                take()
    finally:
        torch.set_num_threads(before)
    return {name: torch.cat(parts) for name, parts in found.items()}


class _Answering:
    """Files, opened as often as batches are answered at the same time."""

    def __init__(self, files: Mapping[str, ModelFile], threads: int) -> None:
        self._files, self._threads = files, threads
        # A file that cannot be opened is to be said before any image is read.
        self._idle = [self._open()]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """What every file answers to a batch."""
        import torch

        from pipeline.measure.timing import run_images

        try:
            opened = self._idle.pop()
        except IndexError:  # all others are at work
            opened = self._open()
        found = {}
        with torch.inference_mode():
            for name, runnable in opened.items():
                with reading(self._files[name].path):
                    found[name] = run_images(runnable, images)
        self._idle.append(opened)
        return found

    def _open(self) -> dict[str, Runnable]:
        return {name: _opened(file, self._threads) for name, file in self._files.items()}


def _chooses_its_threads(file: ModelFile) -> bool:
    """Whether a runtime spreads its work over the machine by itself, as Core ML does."""
    form = FORMATS[file.format]
    return form.own_threads and form.module().evaluated() == "runtime"


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
