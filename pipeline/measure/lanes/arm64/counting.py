"""Instructions of an inference on an emulated processor: exact, and the same on every machine.

They are no time: caches, memory and how many instructions a processor does at once are not in
them. Two files can be compared by them without noise.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import InputError, reading
from pipeline.measure.lanes.arm64 import machine
from pipeline.measure.lanes.arm64.machine import Machine
from pipeline.measure.lanes.lane import Instructions, ModelFile

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.measure.lanes.arm64.jobs import Task

SOURCE = Path(__file__).with_name("instructions.c")
PER_INSTRUCTION = {"cortex-a53": 8, "cortex-a76": 16, "max": 32}
"""Most int8 multiply-accumulates of one instruction of 128 bits, by processor.

Cortex-A53: SMULL and SMLAL multiply 8 pairs of bytes. Cortex-A76: SDOT, 16 pairs. max: SMMLA, a
matrix of 2 x 8 by one of 8 x 2, 32 pairs.
"""
FLOAT_PER_INSTRUCTION = 4
"""FMLA of four float32 numbers, on each."""


@dataclass(frozen=True, kw_only=True)
class Counter:
    """The plugin, compiled, on a machine."""

    machine: Machine
    plugin: Path

    def counted(self, cpu: str, tasks: list[Task], folder: Path) -> list[Instructions]:
        """What one inference of each task takes.

        Raises:
            InputError: a file cannot be run, or the emulator cannot load the plugin.
        """
        from pipeline.measure.lanes.arm64 import child, jobs

        out = folder / "counts.txt"
        more = ["-plugin", f"{self.plugin},out={out}"]
        jobs.do("count", tasks, self.machine, cpu, folder, more=more)
        marks = [tuple(map(int, line.split())) for line in out.read_text().splitlines()]
        each = 1 + len(child.COUNTED)
        if len(marks) != each * len(tasks):
            raise InputError(
                f"{tasks[0].path}: {len(marks)} marks were counted of {each * len(tasks)}; please "
                "report it"
            )
        rows = [marks[start : start + each] for start in range(0, len(marks), each)]
        return [_of_one(warm, few, many, child.COUNTED) for warm, few, many in rows]


def _of_one(
    warm: tuple[int, ...], few: tuple[int, ...], many: tuple[int, ...], times: tuple[int, int]
) -> Instructions:
    """Instructions of one inference: those between the last marks, less those of the few.

    Args:
        warm: both counts at the first mark.
        few: at the second.
        many: at the third.
        times: inferences between the first and the second, and the second and the third.
    """
    fewer, more = times
    total, products = (
        round(((end - middle) - (middle - start)) / (more - fewer))
        for start, middle, end in zip(warm, few, many, strict=True)
    )
    return Instructions(total=total, products=products)


def counter(tell: Callable[[str], None] = print) -> Counter:
    """The machine with its plugin; both are made where they are not there.

    Raises:
        InputError: there is no compiler, or the machine cannot be made.
    """
    made = machine.set_up(tell)
    plugin = made.folder / f"instructions-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not plugin.is_file():
        if (missing := cannot_compile()) is not None:
            raise InputError(missing)
        _compile(plugin)
    return Counter(machine=made, plugin=plugin)


def cannot_compile() -> str | None:
    """What is missing to count, and the fix; None where nothing."""
    if _compiler() is not None:
        return None
    return (
        "there is no gcc, which compiles the counter of instructions once; install it, such as "
        "with `apt-get install gcc libc6-dev`"
    )


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def _compile(plugin: Path) -> None:
    compiler = _compiler()
    assert compiler is not None
    scratch = plugin.with_name(f".{plugin.name}.{os.getpid()}")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(scratch), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines()[:1] or [f"exit status {done.returncode}"]
        raise InputError(f"{compiler} cannot compile {SOURCE.name}: {words[0]}")
    scratch.rename(plugin)


def counts(
    cpu: str, files: Mapping[str, ModelFile], inputs: Mapping[str, Tensor]
) -> dict[str, Instructions]:
    """Instructions of one inference of each file on one thread; see `lane.Counts`."""
    from pipeline.measure.lanes.arm64 import jobs

    modules = {name: jobs.elsewhere(file) for name, file in files.items()}
    made = counter()
    with jobs.scratch() as folder:
        tasks = {}
        for number, (name, file) in enumerate(files.items()):
            task = jobs.Task(path=file.path, format=file.format, outputs=folder / str(number))
            with reading(file.path):
                task.give(modules[name].fed(file.path, inputs[name].numpy()))
            tasks[name] = task
        found = made.counted(cpu, list(tasks.values()), folder)
    return dict(zip(tasks, found, strict=True))


def layer_counts(cpu: str, file: ModelFile) -> dict[str, Instructions]:
    """Instructions of each operation of a file, cut out into a file of its own; see `parts`.

    What a call of the runtime takes besides, which is the same for each, is not taken off here.

    Returns:
        By the name of the layer, in the order of the file; none of a format that is not cut.
    """
    from pipeline.measure.lanes.arm64 import jobs

    module = jobs.elsewhere(file)
    made = counter()
    with jobs.scratch() as folder:
        tasks = {}
        with reading(file.path):
            for number, (name, content) in enumerate(module.parts(file.path.read_bytes())):
                path = folder / f"{number}{file.path.suffix}"
                path.write_bytes(content)
                tasks[name] = jobs.Task(path=path, format=file.format, outputs=folder / f"{number}")
        found = made.counted(cpu, list(tasks.values()), folder) if tasks else []
    return dict(zip(tasks, found, strict=True))


def least(cpu: str, int8_macs: int, macs: int) -> int:
    """Instructions that the multiply-accumulates of an inference alone would take.

    Args:
        cpu: a key of `PER_INSTRUCTION`.
        int8_macs: those in int8.
        macs: all; the others are in float.
    """
    return -(-int8_macs // PER_INSTRUCTION[cpu]) + -(-(macs - int8_macs) // FLOAT_PER_INSTRUCTION)
