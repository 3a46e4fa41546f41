"""What files do on emulated processors, on the screen."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.measure.arm64.instructions import by_operation
from pipeline.measure.arm64.record import Arm64
from pipeline.report import arm64

_OPERATIONS = 8
"""That are shown; arm64.json has every layer."""


def show(found: Arm64, console: Console) -> None:
    """Print a row for each file and processor, and where layers differ."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "processor"):
        table.add_column(heading)
    for heading in arm64.HEADINGS:
        table.add_column(heading, justify="right")
    for file in found.files:
        for cpu in file.cpus:
            table.add_row(escape(file.name), cpu.cpu, *arm64.cells(cpu))
    console.print(table)
    _show_operations(found, console)
    for file in found.files:
        for line in arm64.lines(file.cpus):
            console.print(f"{file.name}: {line}", highlight=False, markup=False)
    for name, why in found.not_run.items():
        console.print(f"{name}: not run: {why}", highlight=False, markup=False)
    console.print(f"{arm64.MEANING} Emulated by {found.emulator}.", highlight=False)


def _show_operations(found: Arm64, console: Console) -> None:
    """Print what the operations of a file take on each processor, where they were counted."""
    for file in found.files:
        counted = {cpu.cpu: cpu.instructions for cpu in file.cpus if cpu.instructions is not None}
        sums = {name: by_operation(of) for name, of in counted.items() if of.layers}
        if not sums:
            continue
        table = Table(box=None, pad_edge=False, title_justify="left")
        table.add_column(f"{escape(file.name)}: instructions by operation")
        for name in sums:
            table.add_column(name, justify="right")
        first = next(iter(sums.values()))
        for operation in list(first)[:_OPERATIONS]:
            cells = [arm64.millions(of[operation][0]) for of in sums.values()]
            table.add_row(escape(operation), *cells)
        console.print(table)
