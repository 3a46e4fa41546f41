"""The names of a network's classes, in a file of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.errors import InputError, listed
from pipeline.base.safe_files import content_of
from pipeline.tasks.images.scan import Scan

_KEY = "data.classes"
_MOST_BYTES = 16 * 2**20


def listed_classes(path: Path, fewest: int = 2) -> tuple[str, ...]:
    """The classes that a text file names, one in a line, in the order of the outputs.

    Args:
        path: of the file.
        fewest: classes that it must name.

    Raises:
        InputError: it cannot be read, or names fewer, or one twice.
    """
    try:
        text = content_of(path, _MOST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{_KEY}: {path}: cannot be read ({error})") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    twice = sorted(name for name, times in Counter(names).items() if name and times > 1)
    if not all(names):
        found = f"an empty line ({names.index('') + 1})"
    elif twice:
        found = f"{listed(twice)} more than once"
    elif len(names) < fewest:
        found = f"{len(names)} names"
    else:
        return tuple(names)
    raise InputError(
        f"{_KEY}: {path}: holds {found}; give the name of a class in every line, each once, at "
        f"least {fewest}"
    )


def unlisted(scan: Scan, classes: Sequence[str], path: Path) -> list[str]:
    """What is wrong with the class folders of a scan, where the file at `path` names `classes`."""
    odd = sorted(set(scan.counts) - set(classes))
    if not odd:
        return []
    names = listed(repr(name) for name in odd)
    return [
        f"{scan.key}: class folders that {_KEY} ({path}) does not name: {names}; name them there, "
        "or remove them"
    ]
