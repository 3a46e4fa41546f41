"""What files do on emulated processors, on the screen."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.measure.arm64.record import Arm64
from pipeline.report import arm64


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
    for file in found.files:
        for line in arm64.lines(file.cpus):
            console.print(f"{file.name}: {line}", highlight=False, markup=False)
    for name, why in found.not_run.items():
        console.print(f"{name}: not run: {why}", highlight=False, markup=False)
    console.print(f"{arm64.MEANING} Emulated by {found.emulator}.", highlight=False)
