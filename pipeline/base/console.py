"""What the person at the terminal sees: progress and results, nothing of the libraries' noise."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.base.safe_files import refuse_to_write

Advance = Callable[[int, str], None]
"""Called with (steps done so far, a short note such as the loss)."""


LOG = "run.log"
"""In the folder of a run, and in that of all runs: what libraries print."""

_SECONDS_BETWEEN_LINES = 30.0
_WIDTH_ELSEWHERE = 160


@contextmanager
def third_party_output_to(log: Path, *, quiet: bool = False) -> Iterator[Console]:
    """Send everything that prints to this process's outputs into `log`, and yield the terminal.

    Works on file descriptors, so native libraries and child processes are covered.

    Args:
        log: gets the output; made where it is not there.
        quiet: the terminal shows nothing.
    """
    if log != Path(os.devnull):
        refuse_to_write(log)
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
        # In a file or a pipe nothing has to fit a screen.
        width = None if terminal.isatty() else _WIDTH_ELSEWHERE
        yield Console(file=terminal, soft_wrap=True, width=width, quiet=quiet)
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
    """A progress bar with a note; where there is no terminal, a line every half minute."""
    if not console.is_terminal:
        last = time.monotonic()

        def print_sometimes(done: int, text: str) -> None:
            nonlocal last
            if done >= total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                console.print(f"  {title}: {done}/{total} {text}".rstrip(), highlight=False)

        yield print_sometimes
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
