"""What the person at the terminal sees: progress and results, nothing of the libraries' noise."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, str], None]
"""Called with (steps done so far, a short note such as the loss)."""


@contextmanager
def third_party_output_to(log: Path) -> Iterator[Console]:
    """Send everything that prints to this process's outputs into `log`, and yield the terminal.

    Works on file descriptors, so native libraries and child processes are covered.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    terminal: TextIO = os.fdopen(os.dup(saved_out), "w", encoding="utf-8", errors="replace")
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    try:
        yield Console(file=terminal, soft_wrap=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        terminal.flush()
        os.dup2(saved_out, 1)
        os.dup2(saved_err, 2)
        os.close(saved_out)
        os.close(saved_err)
        terminal.close()
        logging.captureWarnings(False)


@contextmanager
def tracked(console: Console, title: str, total: int) -> Iterator[Advance]:
    """A progress bar with a note; where there is no terminal, the last note is printed once."""
    if not console.is_terminal:
        note = ""

        def remember(done: int, text: str) -> None:
            nonlocal note
            note = text

        yield remember
        if note:
            console.print(f"  {title}: {note}", highlight=False)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, note="")
        yield lambda done, text: progress.update(task, completed=done, note=text)
