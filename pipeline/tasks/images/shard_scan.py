"""Shards of a set: where they are, and what they hold, kept so that headers are read once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import disk
from pipeline.base.errors import listed
from pipeline.base.locks import held
from pipeline.base.store import LOCKS, key_of
from pipeline.recipe.places import meant
from pipeline.tasks.images import samples as reading
from pipeline.tasks.images import tar
from pipeline.tasks.images.files import extensions, told_of
from pipeline.tasks.images.index import index_of, read_arrays, write_arrays
from pipeline.tasks.images.members import Members
from pipeline.tasks.images.samples import Problems, Samples, joined, read_shard
from pipeline.tasks.images.stored import STATE, bounds_of, state_of

_SUFFIX = ".tar"
_COMPRESSED = (
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tar.lzma", ".tar.z"),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst"),
)
_ALLOWED = "a folder of .tar files, one .tar file, or several by a * in their name"
_ARRAYS = ("states", "counts", "offsets", "sizes", "labels", "lengths")
_TEXTS = ("names", "about")


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardScan:
    """The shards of a set, as `Scanned`.

    Attributes:
        key: of the recipe, which names the set.
        root: a folder of shards, a shard, or several by a * in their name.
        images: of all shards, in the order of their names, and in each as they lie there.
        labels: int64 [N], which of `texts` is that of an image; -1 where none was asked for.
        texts: what the shards have as labels.
        passed: files that are passed over: how many of each suffix, and one of them.
        problems: what is wrong, a line each.
    """

    key: str
    root: Path
    images: Members
    labels: NDArray[np.int64]
    texts: tuple[str, ...]
    passed: dict[str, tuple[int, str]]
    problems: tuple[str, ...] = ()

    def by_class(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """As `Scanned`."""
        if not self.texts:
            yield "", np.arange(len(self.labels))
        order = np.argsort(self.labels, kind="stable")
        ends = np.searchsorted(self.labels[order], np.arange(len(self.texts)), side="right")
        begins = np.searchsorted(self.labels[order], np.arange(len(self.texts)))
        for name, begin, end in zip(self.texts, begins.tolist(), ends.tolist(), strict=True):
            yield name, order[begin:end]

    def notes(self) -> list[str]:
        """As `Scanned`."""
        return [f"{self.key}: {line}" for line in told_of(self.passed)]

    def passed_over(self) -> dict[str, int]:
        """As `Scanned`."""
        return {suffix: count for suffix, (count, _) in self.passed.items()}


def scan_shards(
    key: str, root: Path, label: str | None, cache: Path | None, *, keep: bool = True
) -> ShardScan:
    """The images of the shards of a set, and what is wrong with them.

    Args:
        key: see `ShardScan`.
        root: see `ShardScan`.
        label: what says the class of an image, as of a recipe; None where it needs none.
        cache: directory where what shards hold is kept; None reads their headers.
        keep: whether it may be written there.
    """
    folder, names, wrong = _shards(root)
    problems = Problems(key, wrong)
    if wrong:
        return _scan(key, root, folder, None, problems)
    if cache is None or not keep:
        old = None if cache is None else _read_table(table_of(cache, root, label))
        return _scan(key, root, folder, _samples(folder, names, label, old, problems), problems)
    place = table_of(cache, root, label)
    cache.mkdir(parents=True, exist_ok=True)
    # Of several processes that start together, one reads the headers.
    with held(cache / LOCKS / f"{place.stem}.json", lambda owner: None):
        old = _read_table(place)
        found = _samples(folder, names, label, old, problems)
        if found is not None and found is not old:
            _write_table(place, found, cache)
    return _scan(key, root, folder, found, problems)


def table_of(cache: Path, root: Path, label: str | None) -> Path:
    """Where what the shards of a set hold is kept."""
    sources = b"\0".join(Path(str(one.__file__)).read_bytes() for one in (reading, tar))
    code = hashlib.sha256(sources).hexdigest()
    kind = key_of({"label": label, "extensions": list(extensions()), "code": code})
    index = index_of(cache, root)
    return index.with_name(f"{index.stem}-{kind}.npz")


def _shards(root: Path) -> tuple[Path, list[str], list[str]]:
    """The folder of the shards of a set, their names in order, and what is wrong."""
    folder = root if root.is_dir() else root.parent
    try:
        if root.is_dir():
            found = [name for name in os.listdir(root) if not name.startswith(".")]
        elif "*" in root.name and folder.is_dir():
            found = meant(root)
        elif os.path.lexists(root):
            found = [root.name]
        else:
            return folder, [], [f"{root} does not exist; give {_ALLOWED}"]
    except OSError as error:
        return folder, [], [f"{root}: cannot be looked at ({error.strerror})"]
    names = sorted(name for name in found if name.lower().endswith(_SUFFIX))
    compressed = sorted(name for name in found if name.lower().endswith(_COMPRESSED))
    if compressed:
        told = f"{root}: {listed(compressed)}: compressed, so that no member can be read by itself"
        return folder, names, [f"{told}; decompress them, images hardly become smaller"]
    if not names:
        held_there = f" ({listed(sorted(found))})" if found else ""
        return folder, names, [f"{root} holds no {_SUFFIX} file{held_there}; give {_ALLOWED}"]
    return folder, names, []


def _samples(
    folder: Path, names: list[str], label: str | None, old: Samples | None, problems: Problems
) -> Samples | None:
    """Of all shards; those that are as they were are not read again. None if nothing is right."""
    states: list[tuple[int, ...]] = []
    for name in names:
        try:
            states.append(state_of(os.stat(folder / name)))
        except OSError as error:
            problems.lines.append(f"{folder / name}: cannot be read ({error.strerror})")
            states.append((-1,) * STATE)
    known = {}
    if old is not None:
        if old.shards == tuple(names) and old.states.tolist() == [list(one) for one in states]:
            return old
        known = {name: number for number, name in enumerate(old.shards)}
    parts = []
    for name, state in zip(names, states, strict=True):
        number = known.get(name)
        if old is not None and number is not None and tuple(old.states[number]) == state:
            parts.append(old.shard(number))
        elif state[0] >= 0 and (read := read_shard(folder / name, label, problems)) is not None:
            parts.append(read)
    return joined(parts) if parts else None


def _scan(
    key: str, root: Path, folder: Path, found: Samples | None, problems: Problems
) -> ShardScan:
    told = problems.told()
    if found is not None and not told and len(found.offsets) == 0:
        kinds = " ".join(extensions())
        told = [f"{key}: {root} holds no images that are read ({kinds}); give {_ALLOWED}"]
    if found is None or told:
        found = _NOTHING
    passed: dict[str, tuple[int, str]] = {}
    for one in found.passed:
        for suffix, (count, first) in one.items():
            before, earlier = passed.get(suffix, (0, first))
            passed[suffix] = (before + count, earlier)
    return ShardScan(
        key=key,
        root=root,
        images=Members(
            folder=folder,
            archives=found.shards,
            states_then=found.states,
            archive=np.repeat(np.arange(len(found.shards), dtype=np.int32), found.counts),
            offsets=found.offsets,
            sizes=found.sizes,
            text=found.names,
            bounds=bounds_of(found.lengths, len(found.lengths)),
        ),
        labels=found.labels,
        texts=found.texts,
        passed=passed,
        problems=tuple(told),
    )


_NONE = np.zeros(0, np.int64)
_NOTHING = Samples(
    shards=(),
    states=np.zeros((0, STATE), np.int64),
    counts=_NONE,
    offsets=_NONE,
    sizes=_NONE,
    labels=_NONE,
    texts=(),
    names=b"",
    lengths=_NONE,
    passed=(),
)


def _write_table(path: Path, found: Samples, cache: Path) -> None:
    """Keep what shards hold; on a full disk nothing is kept, and headers are read again."""
    about = {"shards": found.shards, "texts": found.texts, "passed": found.passed}
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    arrays["names"] = np.frombuffer(found.names, np.uint8)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    try:
        write_arrays(path, arrays)
    except OSError as error:
        if not disk.is_full(error, cache):
            raise


def _read_table(path: Path) -> Samples | None:
    """What was kept; None where there is none, or its parts do not fit together."""
    arrays = read_arrays(path, (*_ARRAYS, *_TEXTS))
    if arrays is None:
        return None
    try:
        return _checked(arrays)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _checked(arrays: dict[str, NDArray[Any]]) -> Samples:
    """Samples of their arrays.

    Raises:
        ValueError, TypeError, KeyError or AttributeError: these are none.
    """
    about = json.loads(arrays["about"].tobytes())
    passed = [
        {suffix: (int(count), str(first)) for suffix, (count, first) in one.items()}
        for one in about["passed"]
    ]
    found = Samples(
        **{name: arrays[name] for name in _ARRAYS},
        names=arrays["names"].tobytes(),
        shards=tuple(map(str, about["shards"])),
        texts=tuple(map(str, about["texts"])),
        passed=tuple(passed),
    )
    shards, images = len(found.shards), len(found.offsets)
    columns = (found.offsets, found.sizes, found.labels, found.lengths)
    fits = (
        found.states.shape == (shards, STATE)
        and found.counts.shape == (shards,)
        and len(found.passed) == shards
        and all(column.shape == (images,) for column in columns)
        and all(column.dtype == np.int64 for column in (*columns, found.counts, found.states))
        and int(found.counts.sum()) == images
        and int(found.lengths.sum()) == len(found.names)
        and all(int(column.min(initial=0)) >= 0 for column in (*columns[:2], found.lengths))
        and int(found.counts.min(initial=0)) >= 0
        and int(found.labels.min(initial=0)) >= -1
        and int(found.labels.max(initial=-1)) < len(found.texts)
    )
    if not fits:
        raise ValueError("the arrays do not fit together")
    return found
