"""The errors that end a command with one message instead of a traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_LISTED = 5


class InputError(Exception):
    """Bad recipe, data, checkpoint or argument; the command line ends with exit code 2.

    The message names the value, what is allowed, and the fix.
    """


class MismatchError(Exception):
    """A result that is not what went in; the command line ends with exit code 1.

    Not the user's mistake, but theirs to see: a wrong file must not be shipped.
    """


def listed(items: Iterable[object]) -> str:
    """The first few and how many more, for a message: `a, b, c, d, e and 7 more`."""
    texts = [str(item)[:120] for item in items]
    texts = [text if text.isprintable() else repr(text) for text in texts]
    more = len(texts) - _LISTED
    return ", ".join(texts[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def printable(text: object) -> str:
    """Text for a terminal: what names of files hold may not move its cursor or colour it."""
    return "".join(
        letter
        if letter.isprintable() or letter == "\n"
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in str(text)
    )


_SHOWN = 200


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Make one line of whatever a library says about a file of a run that it cannot use.

    The traceback goes where this process's own output goes: into the log.

    Raises:
        InputError: names the file, and the cause.
    """
    try:
        yield
    except (InputError, MismatchError):
        raise
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split())[:_SHOWN] or "no cause given"
        raise InputError(
            f"{file}: cannot be used, it is damaged or of another version "
            f"({type(error).__name__}: {words}); run the recipe again, with --fresh if it stays"
        ) from error
