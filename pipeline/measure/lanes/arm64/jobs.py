"""Jobs for the emulated machine: files and inputs go there as files, and so do outputs back."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.formats.format import ElsewhereModule
from pipeline.formats.formats import FORMATS
from pipeline.measure.lanes.arm64.machine import Machine
from pipeline.measure.lanes.lane import Advance, ModelFile, silent

CHILD = Path(__file__).with_name("child.py")


@dataclass(kw_only=True)
class Task:
    """A file that is run on the machine.

    Attributes:
        path: of the file.
        format: of `FORMATS`.
        inputs: .npy files, (images, ...) as the runtime takes them.
        outputs: what the names of the files of its outputs begin with.
    """

    path: Path
    format: str
    outputs: Path
    inputs: list[Path] = field(default_factory=list)

    def give(self, values: NDArray[Any]) -> None:
        """Add inputs, (images, ...)."""
        name = f"{self.outputs.name}-in-{len(self.inputs)}.npy"
        self.inputs.append(self.outputs.with_name(name))
        np.save(self.inputs[-1], values)

    def output(self, number: int) -> NDArray[Any]:
        """One of its outputs, (images, ...)."""
        found: NDArray[Any] = np.load(f"{self.outputs}-{number}.npy")
        return found

    def content(self) -> dict[str, Any]:
        """As the child reads it."""
        return {
            "path": str(self.path.absolute()),
            "format": self.format,
            "inputs": [str(path) for path in self.inputs],
            "outputs": str(self.outputs),
        }


def elsewhere(file: ModelFile) -> ElsewhereModule:
    """What makes a file ready for the machine.

    Raises:
        InputError: its runtime does not exist for ARM Linux.
    """
    if (why_not := cannot_run(file.format)) is not None:
        raise InputError(f"{file.path}: {why_not}")
    module = FORMATS[file.format].elsewhere
    assert module is not None
    return module()


def cannot_run(form: str) -> str | None:
    """Why files of a format cannot run on the machine; None where they can."""
    if FORMATS[form].elsewhere is not None:
        return None
    runnable = [one.title for one in FORMATS.values() if one.elsewhere is not None]
    return (
        f"{FORMATS[form].title} has no runtime for ARM64 Linux; files of "
        f"{' and '.join(runnable)} can be run there"
    )


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a job, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="pocketnest-arm64-") as folder:
        yield Path(folder)


def do(
    what: str,
    tasks: Sequence[Task],
    machine: Machine,
    cpu: str,
    folder: Path,
    *,
    threads: int = 1,
    more: Sequence[str] = (),
    advance: Advance = silent,
) -> None:
    """Run the child on the machine until its job is done.

    Args:
        what: `answer` or `count`.
        tasks: files with their inputs.
        machine: that was set up.
        cpu: as QEMU names it.
        folder: for the job.
        threads: of the runtimes.
        more: options of QEMU.
        advance: told of the images, or the files, that are done.

    Raises:
        InputError: the child failed; with its last words.
    """
    job = folder / "job.json"
    content = {"do": what, "threads": threads, "files": [task.content() for task in tasks]}
    job.write_text(json.dumps(content), encoding="utf-8")
    command = machine.command(cpu, [str(CHILD), str(job)], more)
    said = folder / "stderr.txt"
    with said.open("wb") as errors:
        code = _followed(command, machine.environment(threads), errors, advance)
    if code:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        print("\n".join(lines))  # into the log
        words = lines[-1][:300] if lines else f"exit status {code}"
        names = " or ".join(dict.fromkeys(str(task.path) for task in tasks))
        raise InputError(f"{names}: cannot be run on an emulated {cpu}: {words}")


def _followed(
    command: Sequence[str], environment: dict[str, str], errors: Any, advance: Callable[[int], Any]
) -> int:
    """Run a command, tell of every line that it prints, and return its exit status."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,  # what is typed at the terminal is this process's to answer
    )
    try:
        assert process.stdout is not None
        # Where this process is killed, the child ends at its next line: nobody reads it.
        for done, _ in enumerate(process.stdout, 1):
            advance(done)
        return process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
