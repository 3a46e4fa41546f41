"""The program on disk: a `torch.export` archive with the quantized operations known."""

from __future__ import annotations

import functools
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchao.quantization.pt2e  # noqa: F401  registers the quantized_decomposed operations
from torch import fx

from pipeline.base.errors import InputError
from pipeline.base.profile import span

_PARTS = (
    *("archive_format", "archive_version", "byteorder", "version", ".data/", "models/"),
    *("data/constants/", "data/sample_inputs/", "data/weights/"),
)
"""What an archive of a program consists of, inside its folder; compiled code would be elsewhere."""
_OBJECT = "custom_obj"
_ONLY_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@span("trace", "the program, saved")
def save(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write `program` to `path` (.pt2).

    By way of memory: where the disk refuses a part, torch's writer of archives ends the process.

    Raises:
        OSError: it could not be written.
    """
    written = io.BytesIO()
    torch.export.save(program, written)
    path.write_bytes(written.getbuffer())


def load(path: Path) -> torch.export.ExportedProgram:
    """Read a program that `save` wrote; no code in the file runs.

    What was read last is kept: several stages of several recipes read the same program one after
    the other, and reading takes seconds. So it is not to be changed; `module()` gives a copy.

    Raises:
        InputError: it holds something else than a program and its tensors.
    """
    found = path.stat()
    return _loaded(path.absolute(), found.st_ino, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=2)
@span("trace", "the program, read")
def _loaded(path: Path, *_: int) -> torch.export.ExportedProgram:
    with zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if odd := [name for name in names if not name.startswith(_PARTS) or _OBJECT in name]:
        raise InputError(
            f"{path}: holds {odd[0]!r}, which is no part of a program of tensors and could run "
            "code, so it was not loaded; run the recipe again"
        )
    with _only_tensors():
        return torch.export.load(path)


def graph_of(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A copy of the program's graph to run, whose image and operations are named as in it.

    torch gives an image that is called like a function of Python's, as nn.Sequential calls its
    own, another name there.
    """
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    images = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, name in zip(images, program.graph_signature.user_inputs, strict=True):
        node.name = str(name)
    return graph


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Keep torch's loader, which takes any pickle where tensors alone fail, to tensors alone."""
    before = os.environ.get(_ONLY_TENSORS)
    os.environ[_ONLY_TENSORS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ONLY_TENSORS]
        else:
            os.environ[_ONLY_TENSORS] = before
