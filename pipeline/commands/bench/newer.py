"""The same files in other versions of their runtimes, each in a process of its own environment.

What an upgrade gives is the ratio of two versions on one file, timed in turn. Each time is taken in
the other process: the way there and back would be much of a small file's.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import InputError, reading
from pipeline.commands.bench.contestants import Contestant, Invocation
from pipeline.formats.formats import FORMATS
from pipeline.formats.onnx.file import needs_exact_kernels
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES

_CHILD = Path(__file__).with_name("newer_child.py")
_SECONDS = 10


class Newer:
    """An environment with newer runtimes, its process running.

    Attributes:
        versions: of the runtimes that are there, by format.
    """

    def __init__(self, python: Path, scratch: Path) -> None:
        """Start the process.

        Args:
            python: of the environment.
            scratch: folder for images and for what the runtimes print.

        Raises:
            InputError: the interpreter does not start, or has neither runtime.
        """
        self._python, self._scratch = python, scratch
        self._log = scratch / "newer.log"
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [python, "-I", _CHILD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
                )
        except OSError as error:
            raise InputError(f"--newer: {python}: {error.strerror}; give a Python") from error
        self._taken: dict[str, float] = {}
        packages = {form: about.package for form, about in FORMATS.items() if about.elsewhere}
        self.versions: dict[str, str] = self._asked(packages)["versions"]
        if not self.versions:
            self.end()
            names = " nor ".join(packages.values())
            raise InputError(f"--newer: {python}: has neither {names}; install one there")

    def contestants(self, files: Iterable[Contestant]) -> list[Contestant]:
        """Every file that this environment can run, once more, beside itself here."""
        return [
            self._contestant(one, one.file, one.image)
            for one in files
            if one.file is not None and one.image is not None and one.file.format in self.versions
        ]

    def _contestant(self, one: Contestant, file: ModelFile, image: Tensor) -> Contestant:
        runtime = f"{FORMATS[file.format].runtime_title} {self.versions[file.format]}"
        note = missing = None
        try:
            there = self._opened(one.name, file, image, threads=1)
        except InputError as error:
            missing = f"{runtime}: {error}"
        else:
            note = _differs(there, file, image)

        def call(threads: int) -> Invocation:
            self._opened(one.name, file, image, threads)
            return partial(self._run, one.name)

        return Contestant(
            name=f"{one.name} in {runtime}",
            tool=one.tool,
            runtime=runtime,
            precision=one.precision,
            path=one.path,
            size_bytes=one.size_bytes,
            made_in_s=one.made_in_s,
            accuracy=None,
            call=None if missing else call,
            clock=partial(self._taken.__getitem__, one.name),
            note=note,
            missing=missing,
            same_as=one.name,
        )

    def _run(self, name: str) -> None:
        self._taken[name] = self._asked({"run": name})["ms"]

    def _opened(self, name: str, file: ModelFile, image: Tensor, threads: int) -> Tensor:
        """What a file answers, which the process keeps open."""
        elsewhere = FORMATS[file.format].elsewhere
        assert elsewhere is not None  # or no version was asked for
        given = self._scratch / "image.npy"
        with reading(file.path):
            np.save(given, elsewhere().fed(file.path, image.numpy()))
        answer = self._asked(
            {
                "open": name,
                "format": file.format,
                "path": str(file.path.absolute()),
                "image": str(given.absolute()),
                "threads": threads,
                "exact": needs_exact_kernels(),
            }
        )
        return torch.tensor(answer["answer"])

    def _asked(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise InputError(f"--newer: {self._python}: its process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it printed nothing"

    def end(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _differs(there: Tensor, file: ModelFile, image: Tensor) -> str | None:
    """How far the answer to the timed image is from this environment's; None where it is the same.

    Whether a file is as accurate there is not known of one image: it has no accuracy in the table.
    """
    here = LANES[HOST].answers({"file": file}, [image], 1)["file"].flatten()
    if torch.equal(here, there):
        return None
    apart = float((here - there).abs().max() / here.abs().max())
    return f"its answer is off by {apart:.1e} of the largest logit of this environment's"


@contextmanager
def opened(pythons: Sequence[Path], scratch: Path) -> Iterator[list[Newer]]:
    """The environments of some interpreters, their processes running until the block ends."""
    running: list[Newer] = []
    try:
        for python in pythons:
            running.append(Newer(python, scratch))
        yield running
    finally:
        for one in running:
            one.end()
