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
_PACKAGE = Path(__file__).parents[1]
_MISTAKES = (
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Make one line of whatever a library says about a file of a run that it cannot use.

    The traceback goes where this process's own output goes: into the log.

    A mistake of our own is not the file's fault and comes through as it is. What counts as one is
    told by where an error was raised and by its type: by a line of this package, as an
    AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError or
    TypeError (what a call with wrong arguments gives is the caller's). So whoever looks something
    up in what a file holds says with a ValueError that it is not there, or stands in `following`.
    What a library raises inside itself is held against the file, whatever its type.

    Raises:
        InputError: names the file, and the cause.
    """
    try:
        yield
    except (InputError, MismatchError):
        raise
    except Exception as error:
        if isinstance(error, _MISTAKES) and _raised_here(error):
            raise
        traceback.print_exc()
        words = " ".join(str(error).split())[:_SHOWN] or "no cause given"
        raise InputError(
            f"{file}: cannot be used, it is damaged or of another version "
            f"({type(error).__name__}: {words}); run the recipe again, with --fresh if it stays"
        ) from error


@contextmanager
def following(what: str) -> Iterator[None]:
    """Say of a file that its parts do not lead from one to the other; also as a decorator.

    For the functions that walk through a library's objects: what such a file lacks is None there,
    or not in its list, and a line of ours is what meets it. They do that and nothing else.

    Args:
        what: the parts are, in words: `an ONNX graph`.

    Raises:
        ValueError: a part is not there.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"the parts of {what} do not fit together ({type(error).__name__}: {error})"
        ) from error


def _raised_here(error: Exception) -> bool:
    """Whether a line of this package raised an error, and no library that it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return Path(frame.f_code.co_filename).is_relative_to(_PACKAGE)
