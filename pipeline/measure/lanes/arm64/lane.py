"""The lanes of emulated ARM64 processors: files run in their ARM64 runtimes, under QEMU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pipeline.base.errors import InputError, reading
from pipeline.base.machine import HostInfo, host_info
from pipeline.measure.lanes.arm64 import counting, machine
from pipeline.measure.lanes.lane import Advance, Counting, Lane, ModelFile, Rounds, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.measure.latency import Latency

LANE = "arm64-"
"""What the names of these lanes begin with, before the processor's."""
CPUS = {
    "cortex-a53": "NEON alone, as in phones of 2013 to 2018 and the small cores of later ones",
    "cortex-a76": "dot products, as in phones since 2019",
    "max": "int8 matrix multiplication, as in phones since 2022, and all else that QEMU knows",
}
"""As QEMU names them, and which kernels of the runtimes they have."""
NO_TIME = "the processor is emulated: what it takes is no time"


def of_cpu(cpu: str) -> Lane:
    """The lane of one of `CPUS`."""
    return Lane(
        title=f"an emulated {cpu}",
        machine=partial(_machine, cpu),
        cannot_time=_cannot_time,
        answers=partial(answers, cpu),
        times=partial(_times, cpu),
        counting=Counting(
            cannot_count=_cannot_count,
            counts=partial(counting.counts, cpu),
            least=partial(counting.least, cpu),
        ),
    )


def answers(
    cpu: str,
    files: Mapping[str, ModelFile],
    inputs: Iterable[Tensor],
    threads: int,
    advance: Advance = silent,
) -> dict[str, Tensor]:
    """What files answer there; see `lane.FileAnswers`. The machine is made where it is not there.

    Args:
        cpu: one of `CPUS`.
        files: by any name.
        inputs: batches; every image is run by itself, as on a phone.
        threads: of the runtimes.
        advance: told of the images that are done, of a mean file.
    """
    import numpy as np
    import torch

    from pipeline.measure.lanes.arm64 import jobs

    modules = {name: jobs.elsewhere(file) for name, file in files.items()}
    made = machine.set_up(print)
    with jobs.scratch() as folder:
        tasks = {
            name: jobs.Task(path=file.path, format=file.format, outputs=folder / str(number))
            for number, (name, file) in enumerate(files.items())
        }
        for images in inputs:
            for name, task in tasks.items():
                with reading(task.path):
                    task.give(modules[name].fed(task.path, images.numpy()))
        jobs.do(
            "answer",
            list(tasks.values()),
            made,
            cpu,
            folder,
            threads=threads,
            advance=lambda done: advance(done // len(files)),
        )
        found = {name: modules[name].answers(task.output(0)) for name, task in tasks.items()}
    return {
        name: torch.from_numpy(np.ascontiguousarray(of, np.float32)) for name, of in found.items()
    }


def traced(cpu: str, file: ModelFile, images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
    """Every quantized tensor inside a file, as computed there; see `FormatModule.trace`.

    Args:
        cpu: one of `CPUS`.
        file: an int8 one.
        images: float32 (batch, 3, side, side), as the file takes them.

    Raises:
        InputError: the file cannot be run there.
    """
    from pipeline.measure.lanes.arm64 import jobs

    module = jobs.elsewhere(file)
    made = machine.set_up(print)
    with jobs.scratch() as folder:
        with reading(file.path):
            copy, fed = module.tapped(file.path), module.fed(file.path, images)
        tapped = folder / f"tapped{file.path.suffix}"
        tapped.write_bytes(copy.content)
        task = jobs.Task(path=tapped, format=file.format, outputs=folder / "out")
        task.give(fed)
        try:
            jobs.do("answer", [task], made, cpu, folder)
        except InputError as error:
            raise InputError(str(error).replace(str(tapped), str(file.path))) from error
        return {
            name: module.numbers(task.output(number)) for number, name in enumerate(copy.names, 1)
        }


def _machine(cpu: str) -> HostInfo:
    """The host, whose CPU is named behind the one that it emulates."""
    host, made = host_info(), machine.found()
    by = "QEMU" if made is None else made.emulator
    return HostInfo(cpu=f"{cpu}, emulated by {by} on {host.cpu}", cores=host.cores, gpu=None)


def _cannot_count(form: str) -> str | None:
    from pipeline.measure.lanes.arm64 import jobs

    return jobs.cannot_run(form)


def _cannot_time(form: str) -> str | None:
    return NO_TIME


def _times(
    cpu: str,
    files: Mapping[str, ModelFile],
    inputs: Mapping[str, Tensor],
    threads: int,
    rounds: Rounds,
    beside: Mapping[str, Callable[[], object]] | None = None,
    advance: Advance = silent,
) -> dict[str, Latency]:
    """Of no files at all there are no times; see `lane.Times`.

    Raises:
        InputError: there is a file.
    """
    for file in files.values():
        raise InputError(f"{file.path}: {NO_TIME}")
    return {}
