"""Words for what files do on emulated ARM64 processors, shared by the report and the command."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.measure.arm64.record import Counted, FirstLayer, OnCpu
from pipeline.report import words
from pipeline.report.records import Report

HEADINGS = ("as here", "steps", "from the program", "layers", "instructions", "of them, the least")
"""Of the cells of a processor."""
MEANING = (
    "As here: images whose answers are this machine's, bit for bit. Steps: the most by which "
    "answers differ from this machine's, and from the program's, of the grid that they lie on. "
    "Layers: those whose numbers are all this machine's, on the images that were traced. "
    "Instructions: of one inference on one thread, emulated; not a time. The least: what its "
    "multiply-accumulates alone would take, as a share of them."
)
HEADER = ("target", "processor", *HEADINGS, "verdict")
_MOST = 3
"""Layers that are named."""


def section(report: Report) -> list[str]:
    """The section of report.md; nothing where no file was run on a processor."""
    return words.section("On ARM64, emulated", HEADER, rows(report), MEANING, notes(report))


def rows(report: Report) -> list[list[str]]:
    """A row for each file and processor, under `HEADER`; none where no file was run on one."""
    return [
        [target.name, cpu.cpu, *cells(cpu), "missed" if cpu.misses else "passed"]
        for target in report.targets
        for cpu in target.arm64
    ]


def notes(report: Report) -> list[str]:
    """What there is to say of the rows."""
    return [f"{target.name}: {line}" for target in report.targets for line in lines(target.arm64)]


def cells(found: OnCpu) -> list[str]:
    """The figures of a processor, in the order of `HEADINGS`."""
    if found.steps is None:
        steps = f"{found.difference:.1e} of the largest"
    else:
        steps = str(found.steps.largest)
    return [
        f"{found.same}/{found.images}",
        steps,
        words.NOT_APPLICABLE if found.program is None else str(found.program.largest),
        f"{found.layers_alike}/{found.layers}" if found.layers else words.NOT_APPLICABLE,
        *_instructions(found.instructions),
    ]


def _instructions(found: Counted | None) -> list[str]:
    if found is None:
        return [words.NOT_APPLICABLE] * 2
    return [millions(found.total), f"{100 * found.share:.0f} %"]


def millions(number: int) -> str:
    """Write a number of instructions."""
    return f"{number / 1e6:.3f} M"


def lines(cpus: Sequence[OnCpu]) -> list[str]:
    """What there is to say of a file's processors, those of one line together."""
    said: dict[str, list[str]] = {}
    for cpu in cpus:
        for line in _lines(cpu):
            said.setdefault(line, []).append(cpu.cpu)
    return [f"{', '.join(names)}: {line}" for line, names in said.items()]


def _lines(found: OnCpu) -> list[str]:
    told = list(found.misses)
    if found.first:
        more = len(found.first) - _MOST
        named = "; ".join(map(_layer, found.first[:_MOST]))
        named += f"; and {more} more" if more > 0 else ""
        told.append(
            f"the first layer that differs, on {words.plural(found.traced, 'image')} that were "
            f"traced: {named}"
        )
    if found.otherwise is not None and found.layers_alike < found.layers:
        told.append(
            "every layer alone makes the program's numbers, save those that lie in the middle "
            "between two steps"
            if found.otherwise == 0
            else f"{words.plural(found.otherwise, 'layer')} alone make other numbers than the "
            "program's, beyond those in the middle between two steps"
        )
    if found.steps is not None and found.program_missing is not None:
        told.append(f"not compared with the program: {found.program_missing}")
    if found.instructions_missing is not None:
        told.append(f"instructions not counted: {found.instructions_missing}")
    return told


def _layer(layer: FirstLayer) -> str:
    name = f"{layer.module} ({layer.name})" if layer.module else layer.name
    return (
        f"{name}, {words.plural(layer.values, 'value')} of {words.plural(layer.images, 'image')} "
        f"by {words.plural(layer.steps, 'step')}{' at most' if layer.steps > 1 else ''}"
    )
