"""A file format that nothing of the package knows: the program itself in an archive, run by torch.

`TOY` is all that adding it takes. Child processes have tables of their own: `added` reaches those.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pipeline.compress.pruning.stored import Bytes
from pipeline.formats.format import ComputedBy, Format, FormatModule, Option
from pipeline.formats.limits import Limits

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipeline.formats.description import Description
    from pipeline.formats.file_facts import FileFacts
    from pipeline.formats.ports import Interface

NAME = "toy"
ABOUT = "about.json"
_PROGRAM = "program.pt2"


def load_writer() -> None:
    """torch writes it, which is loaded already."""


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    pixels: bool = False,
    options: Collection[Option] = (),
) -> None:
    import torch

    content = io.BytesIO()
    torch.export.save(program, content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_PROGRAM, content.getvalue())


def describe(path: Path, about: Description) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(ABOUT, json.dumps(asdict(about)))


def program_in(path: Path) -> torch.export.ExportedProgram:
    import torch
    import torchao.quantization.pt2e  # noqa: F401  registers the operations of the program

    with zipfile.ZipFile(path) as archive:
        return torch.export.load(io.BytesIO(archive.read(_PROGRAM)))


def inspect(path: Path) -> FileFacts:
    from pipeline.formats.file_facts import FileFacts, conv_macs, learned_codes, learned_scales

    program = program_in(path)
    layers, weights = learned_scales(program)
    codes = learned_codes(program)
    macs = 0
    for node in program.graph.nodes:
        if "conv2d" in str(node.target):
            positions = node.meta["val"].shape[2:].numel()
            macs += conv_macs(node.args[1].meta["val"].shape, positions)
    ops = {"program": 1}
    return FileFacts(
        ops=ops, int8_macs=macs, macs=macs, layers=layers, weights=weights, codes=codes
    )


def interface(path: Path) -> Interface:
    from pipeline.formats.ports import Interface, Port

    program = program_in(path)
    signature = program.graph_signature
    shapes = {
        node.name: tuple(node.meta["val"].shape[1:])
        for node in program.graph.nodes
        if node.name in (*signature.user_inputs, *signature.user_outputs)
    }
    image, logits = (
        Port(name=str(name), shape=(None, *shapes[str(name)]), dtype="float32")
        for (name,) in (signature.user_inputs, signature.user_outputs)
    )
    return Interface(input=image, output=logits)


class Opened:
    batch: int | None = None

    def __init__(self, path: Path) -> None:
        self._run = program_in(path).module(check_guards=False)

    def set_input(self, images: NDArray[np.float32]) -> None:
        import torch

        self._images = torch.from_numpy(images)

    def invoke(self) -> None:
        import torch

        with torch.no_grad():
            self._logits = self._run(self._images)

    def output(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._logits.numpy()
        return found


def open_file(path: Path, threads: int = 1) -> Opened:
    return Opened(path)


def trace(path: Path, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.int8]]:
    import torch

    from pipeline.measure.layers import integers

    found = integers(program_in(path), torch.from_numpy(images))
    return {name: numbers.numpy() for name, numbers in found.items()}


def cannot_time() -> str | None:
    return None


def evaluated() -> ComputedBy:
    return "runtime"


def module() -> FormatModule:
    return SimpleNamespace(**globals())  # type: ignore[return-value]


TOY = Format(
    suffix=".toy",
    title="Toy",
    package="torch",
    runtime="torch",
    runtime_title="torch",
    traced_by="runtime",
    limits=Limits(),
    bytes={"int8": Bytes(weight=1, channel=1, pool_channel=1, layer=1)},
    module=module,
)


@contextmanager
def added(folder: Path) -> Iterator[None]:
    """Within it, the table of formats has the toy, here and in child processes."""
    import pytest

    from pipeline.formats.formats import FORMATS
    from tests.making import ROOT

    (folder / "sitecustomize.py").write_text(
        "from pipeline.formats.formats import FORMATS\n"
        "from tests.making.toy_format import NAME, TOY\n"
        "FORMATS[NAME] = TOY\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, NAME, TOY)
        patch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
        yield
