"""A recipe as a tree of values that know their file and line: merging, looking up, showing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

Scalar = str | int | float | bool | None
Plain = Scalar | dict[str, "Plain"] | list["Plain"]


@dataclass(frozen=True)
class Location:
    """Where a value was written.

    Attributes:
        text: for people, `recipes/x.yaml:12` or `--set a.b=c`.
        folder: what a relative path that stands here is relative to.
        in_file: false for `--set`.
    """

    text: str
    folder: Path
    in_file: bool = True


@dataclass(frozen=True)
class Value:
    """A value and where it stands; `removed` where a null of a later file erased it."""

    place: Location
    content: Scalar | dict[str, Value] | list[Value]
    removed: bool = False


def merge(base: Value, over: Value) -> Value:
    """Lay `over` on `base`: mappings merge key by key, null removes, all else replaces."""
    if isinstance(base.content, dict) and isinstance(over.content, dict):
        items = dict(base.content)
        for key, value in over.content.items():
            items[key] = merge(items[key], value) if key in items else value
        # A key that is missing is missing in the file, whatever `--set` added beside it.
        return Value(over.place if over.place.in_file else base.place, items)
    return replace(over, removed=over.content is None)


def plain(value: Value) -> Plain:
    """Return the tree without places and without what null removed."""
    if isinstance(value.content, dict):
        return {k: plain(v) for k, v in value.content.items() if not v.removed}
    if isinstance(value.content, list):
        return [plain(item) for item in value.content]
    return value.content


def find(tree: Value, keys: Sequence[str | int]) -> tuple[Value, bool]:
    """Return the value at `keys` and True, or the nearest one above it and False."""
    for key in keys:
        content = tree.content
        if isinstance(content, list):
            content = {str(index): value for index, value in enumerate(content)}
        if not isinstance(content, dict) or str(key) not in content:
            return tree, False
        tree = content[str(key)]
    return tree, True


HUB, TORCHVISION = "timm:", "torchvision:"
"""Begin what is the name of a checkpoint of timm's, or of torchvision's weights, and no path."""
NAMED = (HUB, TORCHVISION)
PYTHON = "python:"
"""Begins a path of a Python file with the name of one of its functions."""


def absolute_paths(tree: Value, patterns: Sequence[str]) -> Value:
    """Make relative paths absolute, each from the folder of the file that names it.

    Args:
        tree: the merged recipe.
        patterns: dotted keys of paths; a last part `*` stands for every key there.
    """
    for pattern in patterns:
        tree = _absolute(tree, pattern.split("."))
    return tree


def absolute_files(tree: Value) -> Value:
    """Make the path in a `model.name` of the form python:FILE.py:FUNCTION absolute, likewise."""
    name, found = find(tree, ["model", "name"])
    if not found or not isinstance(name.content, str) or not name.content.startswith(PYTHON):
        return tree
    file, _, function = name.content.removeprefix(PYTHON).rpartition(":")
    file = os.path.abspath(name.place.folder / os.path.expanduser(file))
    absolute = replace(name, content=f"{PYTHON}{file}:{function}")
    model, _ = find(tree, ["model"])
    assert isinstance(tree.content, dict)
    assert isinstance(model.content, dict)
    changed = replace(model, content=model.content | {"name": absolute})
    return replace(tree, content=tree.content | {"model": changed})


def _absolute(value: Value, keys: Sequence[str]) -> Value:
    if not keys:
        if not isinstance(value.content, str) or not value.content or "\0" in value.content:
            return value  # the types refuse it
        if value.content.startswith(NAMED):
            return value
        path = value.place.folder / os.path.expanduser(value.content)
        # The slash at the end of a folder is kept: it says that it is one.
        end = "/" if value.content.endswith("/") and path.parent != path else ""
        return replace(value, content=os.path.abspath(path) + end)
    if not isinstance(value.content, dict):
        return value
    wanted = value.content.keys() if keys[0] == "*" else keys[:1]
    changed = {k: _absolute(value.content[k], keys[1:]) for k in wanted if k in value.content}
    return replace(value, content=value.content | changed)


def show(value: Value) -> str:
    """Return a value for an error line: one line, short."""
    return show_plain(plain(value))


def show_key(key: str | int) -> str:
    """Return a key for an error line, quoted unless it is a plain word."""
    return str(key) if re.fullmatch(r"[\w.-]+", str(key), re.ASCII) else repr(key)


def show_plain(value: object) -> str:
    """Return plain data for an error line: one line, short, as YAML would write it."""
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{show_key(k)}: {show_plain(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(show_plain(item) for item in value) + "]"
    elif value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, float) and value in (float("inf"), float("-inf")):
        text = ".inf" if value > 0 else "-.inf"
    else:
        text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else text[:76] + " ..."
