"""A file's answers on emulated processors beside this machine's and the program's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.compress.quantization.running import rounding_at_once
from pipeline.formats.formats import FORMATS
from pipeline.measure import parity
from pipeline.measure.arm64.instructions import counted
from pipeline.measure.arm64.record import Counted, FirstLayer, OnCpu
from pipeline.measure.lanes.arm64 import counting
from pipeline.measure.lanes.arm64 import lane as arm64
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.layers import compare_layers
from pipeline.measure.parity_record import OutputSteps
from pipeline.measure.probabilities import logits_of, told
from pipeline.recipe.task import Link

IMAGES = 50
"""That are run where nothing else is said."""
TRACED = 8
"""Images whose layers are compared; all their layers are held at once."""
FLOAT = "a float file's answers lie on no grid"

Advance = Callable[[int, str], object]
"""Called with the images that are done, of all processors, and the processor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What is compared.

    Attributes:
        file: an exported one.
        images: float32 (images, channels, height, width), as the file takes them.
        step: of the grid that its answers lie on; None for a float file.
        program: that it was written from; None where it is gone, and of a float file.
        no_program: why there is none.
        modules: of the network, by the names of the layers that they make.
        link: what makes probabilities in the file; None of one that gives logits.
    """

    file: ModelFile
    images: Tensor
    step: float | None
    program: torch.export.ExportedProgram | None
    no_program: str | None
    modules: Mapping[str, str]
    link: Link | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Ran:
    """What a file did on one processor, and its answers there, float32 (images, ...)."""

    record: OnCpu
    answers: Tensor


def compared(asked: Asked, cpus: Sequence[str], advance: Advance) -> Iterator[Ran]:
    """Run a file on every processor, one after the other.

    Args:
        asked: the file and what goes with it.
        cpus: of `lane.CPUS`.
        advance: told of the images that are done.

    Raises:
        InputError: the file cannot be run there or here, or the machine cannot be set up.
    """
    here = LANES[HOST].answers({"": asked.file}, [asked.images], 1)[""]
    wanted = None if asked.program is None else _answers(asked.program, asked.images)
    count = len(asked.images)
    for number, cpu in enumerate(cpus):
        lane = LANES[f"{arm64.LANE}{cpu}"]

        def told(done: int, before: int = number * count, on: str = cpu) -> None:
            advance(before + done, on)

        found = lane.answers({"": asked.file}, [asked.images], 1, told)[""]
        record = _record(asked, cpu, found, here, wanted)
        yield Ran(record=record.model_copy(update=_counts(asked, cpu)), answers=found)


def _counts(asked: Asked, cpu: str) -> dict[str, Counted | str]:
    """What the record says of instructions."""
    if (why_not := counting.cannot_compile()) is not None:
        return {"instructions_missing": why_not}
    return {"instructions": counted(cpu, asked.file, asked.images[:1], asked.modules)}


def _answers(program: torch.export.ExportedProgram, images: Tensor) -> Tensor:
    run = rounding_at_once(program)
    with torch.inference_mode():
        return torch.cat([run(part).float() for part in torch.split(images, TRACED)])


def _record(asked: Asked, cpu: str, found: Tensor, here: Tensor, wanted: Tensor | None) -> OnCpu:
    answers, here = found, logits_of(here, asked.link)
    found = told(answers, here, asked.link)
    same = (found == here).flatten(1).all(1)
    step = asked.step
    traced = _traced(asked, cpu, same) if step is not None else _Traced()
    missing = FLOAT if step is None else asked.no_program
    return OnCpu(
        cpu=cpu,
        images=len(found),
        same=int(same.sum()),
        steps=None if step is None else _steps(found, here, step),
        difference=parity.float_difference({"": found}, {"": here}) if step is None else None,
        program=None
        if step is None or wanted is None
        else _steps(told(answers, wanted, asked.link), wanted, step),
        program_missing=missing if step is None or wanted is None else None,
        traced=traced.images,
        layers=traced.layers,
        layers_alike=traced.alike,
        first=traced.first,
        otherwise=traced.otherwise,
        at_fault=traced.at_fault,
        misses=_misses(asked, found, here, traced),
    )


def _steps(found: Tensor, wanted: Tensor, step: float) -> OutputSteps:
    return parity.output_steps({"": found}, {"": wanted}, step)


def _misses(asked: Asked, found: Tensor, here: Tensor, traced: _Traced) -> tuple[str, ...]:
    """What no file may do there; how far an int8 file's answers may lie apart, others judge."""
    misses = parity.finite_misses({"answers": found})
    if traced.at_fault:
        misses.append(
            f"{traced.at_fault} of {traced.layers} layers compute otherwise than the program's "
            "(none may)"
        )
    if asked.step is None:
        difference = parity.float_difference({"": found}, {"": here})
        most = FORMATS[asked.file.format].limits.difference
        if not difference <= most:
            misses.append(f"answers {difference:.2g} of the largest apart (at most {most:g})")
    return tuple(misses)


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """What came of the layers; see `OnCpu`."""

    images: int = 0
    layers: int = 0
    alike: int = 0
    first: tuple[FirstLayer, ...] = ()
    otherwise: int | None = None
    at_fault: int | None = None


def _traced(asked: Asked, cpu: str, same: Tensor) -> _Traced:
    """Compare the layers of some images, those whose answers differ first."""
    rows = torch.cat([(~same).nonzero().flatten(), same.nonzero().flatten()])[:TRACED]
    images = asked.images[rows]
    there = arm64.traced(cpu, asked.file, images.numpy())
    here = FORMATS[asked.file.format].module().trace(asked.file.path, images.numpy())
    alone = None
    if asked.program is not None:
        alone = compare_layers(asked.program, None, lambda _: there, images)
    return _Traced(
        images=len(images),
        layers=len(here),
        alike=sum(np.array_equal(there[name], values) for name, values in here.items()),
        first=first_layers(there, here, asked.modules),
        otherwise=None if alone is None else sum(int(one.own[1:].sum()) > 0 for one in alone),
        at_fault=None if alone is None else sum(one.at_fault for one in alone),
    )


def first_layers(
    found: Mapping[str, NDArray[np.int8]],
    wanted: Mapping[str, NDArray[np.int8]],
    modules: Mapping[str, str],
) -> tuple[FirstLayer, ...]:
    """Where each image's layers begin to differ.

    Args:
        found: integers (images, ...) by layer, in the order of computation.
        wanted: the same of this machine.
        modules: of the network, by layer.
    """
    begun: set[int] = set()
    layers = []
    for name, values in wanted.items():
        apart = np.abs(found[name].astype(np.int16) - values).reshape(len(values), -1)
        new = [row for row in np.flatnonzero(apart.any(1)).tolist() if row not in begun]
        if new:
            begun.update(new)
            layers.append(
                FirstLayer(
                    name=name,
                    module=modules.get(name) or None,
                    images=len(new),
                    values=int((apart[new] > 0).sum()),
                    steps=int(apart[new].max()),
                )
            )
    return tuple(layers)
