"""Where the files of a recipe lie: said so that runs can be moved, and where they lie now."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.errors import InputError, listed
from pipeline.recipe.data import DataConfig
from pipeline.recipe.tree import NAMED, PYTHON

PATHS = (
    *(
        "model.checkpoint",
        "model.backbone_checkpoint",
        "data.path",
        "data.classes",
        "data.labels",
        "data.calibration",
    ),
    *("data.train", "data.test.*"),
)
"""Dotted keys of a recipe whose values are paths; `*` stands for every key there."""


def seen_from(path: str | Path, folder: Path) -> str:
    """A path as a file in `folder` is to name it.

    It is relative, so that both can be moved together. One that has no more than the root of the
    disk in common with `folder`, such as that of a drive of photos, stays as it is: it would lead
    up to the root and down again, to the same place only as long as `folder` stays where it is.
    A slash at the end stays, and so does what is relative already.
    """
    text, here = str(path), os.path.abspath(folder)
    if not os.path.isabs(text) or os.path.commonpath([here, text]) == os.sep:
        return text
    found = os.path.relpath(text, here)
    end = "/" if text.endswith("/") else ""
    return (found if found.startswith("..") else f"./{found}") + end


def named_from(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe as plain data whose paths are as a file in `folder` names them.

    Args:
        content: of the recipe, as `model_dump(mode="json")` gives it; stays as it is.
        folder: see above.
    """
    for pattern in PATHS:
        content = _changed(content, pattern.split("."), folder)
    model = dict(content["model"])
    if model["name"].startswith(PYTHON):
        file, _, function = model["name"].removeprefix(PYTHON).rpartition(":")
        model["name"] = f"{PYTHON}{seen_from(file, folder)}:{function}"
    return content | {"model": model}


def _changed(content: dict[str, Any], keys: list[str], folder: Path) -> dict[str, Any]:
    changed = dict(content)
    for key in list(content) if keys[0] == "*" else keys[:1]:
        value = content.get(key)
        if isinstance(value, dict) and keys[1:]:
            changed[key] = _changed(value, keys[1:], folder)
        elif isinstance(value, str) and not keys[1:] and not value.startswith(NAMED):
            changed[key] = seen_from(value, folder)
    return changed


def data_in(data: DataConfig, folder: Path) -> DataConfig:
    """The data of a recipe, its files and folders taken from `folder`.

    `folder` takes the place of what they all lie in: of photos/train and photos/test that is
    photos; of a single folder, that folder. The file of class names is not looked for there.

    Raises:
        InputError: the data lies in no folder, or one is not in `folder`.
    """
    found = dict(_paths(data))
    if not found:
        raise InputError(
            f"--data {folder}: the images of this run, {data.kind}, lie in no folder; leave it out"
        )
    above = os.path.commonpath([os.path.abspath(_folder(path)) for path in found.values()])
    parts = {key: os.path.relpath(path, above) for key, path in found.items()}
    gone = [key for key, part in parts.items() if not _exists(folder / part)]
    if gone:
        wanted = listed(dict.fromkeys(part for part in parts.values() if part != "."))
        holds = f"; give the folder that holds {wanted}" if wanted else ""
        names = listed(f"{(folder / parts[key])} ({key})" for key in gone)
        raise InputError(f"--data {folder}: not there: {names}{holds}")
    changed: dict[str, Any] = {}
    for key, part in parts.items():
        name, _, inner = key.removeprefix("data.").partition(".")
        place = Path(os.path.normpath(folder / part))
        changed[name] = (changed.get(name, {}) | {inner: place}) if inner else place
    return data.model_copy(update=changed)


def meant(path: Path) -> list[str]:
    """Names in a folder that a name with * means; its other letters mean themselves.

    Raises:
        OSError: the folder cannot be looked at.
    """
    form = re.compile(".*".join(map(re.escape, path.name.split("*"))), re.DOTALL)
    return [
        name
        for name in sorted(os.listdir(path.parent))
        if form.fullmatch(name) and not name.startswith(".")
    ]


def _exists(path: Path) -> bool:
    if "*" not in path.name:
        return path.exists()
    return path.parent.is_dir() and bool(meant(path))


def _folder(path: Path) -> Path:
    """What shards lie in, and the images of a folder: that folder."""
    return path.parent if "*" in path.name or path.suffix.lower() == ".tar" else path


def _paths(data: DataConfig) -> Iterator[tuple[str, Path]]:
    """Every file and folder of images, by the key that names it."""
    for name, value in data:
        if isinstance(value, Path) and name != "classes":
            yield f"data.{name}", value
        elif isinstance(value, Mapping):
            for inner, path in value.items():
                if isinstance(path, Path):
                    yield f"data.{name}.{inner}", path
