"""One command of the command line, and the exit codes that all of them share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

OK, INTERNAL_ERROR, BAD_INPUT, BUDGET_MISSED = 0, 1, 2, 3

EXIT_CODES = """\
exit codes: 0 all budgets met, 1 internal error, 2 bad input, 3 a budget is missed or, of
compare, a regression, or of arm64, device and apple, an answer that differs"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What `pocketnest NAME` is.

    Attributes:
        help: one line, in the list of all commands.
        examples: whole command lines for its own help; the first stands in the help of all.
        add_arguments: tells a parser what it takes.
        run: does it and returns the exit code.
    """

    help: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
