"""One recipe laid on another: a file on the file that it extends, a `--set` on both."""

from __future__ import annotations

from dataclasses import replace

from pipeline.recipe.data import PHOTOS
from pipeline.recipe.tree import Value, absolute_paths, find, merge, plain

_CARD = "card"
_FOLDERS = ("path", "train", "test")
_PATHS = ("data.path", "data.train", "data.test.*")


def lay(base: Value, over: Value) -> Value:
    """As `merge`, but what `card` says of one kind of images never passes to others.

    A recipe that takes most from a shipped one and brings its own photos would otherwise say that
    its network reads handwritten digits, and give it a licence that nobody gave.
    """
    return merge(_without_card(base) if _brings_other_data(base, over) else base, over)


def _brings_other_data(base: Value, over: Value) -> bool:
    """Whether `over` names other images than `base` does; a first folder is no other one."""
    before, after = _data(base), _data(merge(base, over))
    kinds = before.get("kind"), after.get("kind")
    if kinds[0] != kinds[1]:
        return True
    # Photos are what their folders name; other kinds are the same wherever they lie.
    named = [key for key in _FOLDERS if before.get(key) is not None]
    return kinds[1] in PHOTOS and any(before[key] != after.get(key) for key in named)


def _data(tree: Value) -> dict[str, object]:
    """The `data` of a recipe, or of a part of one; {} where it has none."""
    data, found = find(absolute_paths(tree, _PATHS), ["data"])
    content = plain(data) if found else {}
    return dict(content) if isinstance(content, dict) else {}


def _without_card(tree: Value) -> Value:
    if not isinstance(tree.content, dict):
        return tree
    return replace(tree, content={k: v for k, v in tree.content.items() if k != _CARD})
