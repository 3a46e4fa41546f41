"""Which files a Python file imports, read from its text."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path


def imported(path: Path, roots: Sequence[Path]) -> set[Path]:
    """A Python file and all files below `roots` that it imports, and that those import.

    Imports inside functions count as those at the top do, whether they have been run or not.
    Modules that are named as strings, as for `importlib.import_module`, are not found.

    Args:
        path: of the file.
        roots: folders in which modules are looked for, as in `sys.path`.

    Raises:
        OSError: one of the files cannot be read.
    """
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file, roots)
    return found


def _imports(file: Path, roots: Sequence[Path]) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError):
        return  # who imports it is told so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(roots, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            # One dot is the folder of the file, each further one the folder above.
            places = roots if node.level == 0 else [file.parents[node.level - 1]]
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                # `from a import b`: b may be a module, or a name in a.
                yield from _files(places, [*module, alias.name])


def _files(places: Sequence[Path], parts: Sequence[str]) -> Iterator[Path]:
    """The files of a module `a.b.c` and of the packages around it, where they are found first."""
    for place in places:
        folders = [place.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        candidates = [folder / "__init__.py" for folder in folders[1:]]
        candidates += [folder.with_suffix(".py") for folder in folders[1:]]
        there = [file for file in candidates if file.is_file()]
        if there:
            yield from there
            return
