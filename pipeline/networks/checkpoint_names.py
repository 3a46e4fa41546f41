"""A checkpoint's names as a network's: what stands before them, and in their middle.

Programs that train put before every name what the module was wrapped in. A prefix is taken off
where the names are the network's then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

_AVERAGED = {"ema", "swa", "averaged", "average"}
"""Words of a key that say so."""

_COUNTER = "n_averaged"
"""What torch's AveragedModel puts beside its `module.`."""

_AROUND = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers of torch call the module in them; a part of a network may be wrapped, too."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Names of a network's tensors.

    Attributes:
        names: all of them.
        needed: those that a file must have.
    """

    names: Collection[str] = ()
    needed: Collection[str] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A set of tensors in a file, as it would be taken.

    Attributes:
        keys: that lead to it in the file.
        prefix: before the names, taken off.
        around: names of wrappers that were taken out of the names.
        averaged: whether they are averages of the weights.
        items: the tensors, and what else stands among them, by the network's names.
        others: names that do not begin with the prefix.
        hits: how many of the names are the network's.
        whole: whether all that the network needs is there.
    """

    keys: tuple[str, ...]
    prefix: str
    around: tuple[str, ...]
    averaged: bool
    items: Mapping[Any, Any]
    others: tuple[str, ...]
    hits: int
    whole: bool

    @property
    def place(self) -> str:
        """Where in the file it is, for people."""
        return ".".join((*self.keys, self.prefix)).rstrip(".") or "at the top of the file"


def is_averaged(key: str) -> bool:
    """Whether a key says that weights under it are averages."""
    return bool(words(key) & _AVERAGED)


def words(text: str) -> set[str]:
    """Of a key, in small letters."""
    return set(re.split(r"[^a-z]+", text.lower()))


def readings(keys: tuple[str, ...], items: Mapping[Any, Any], wanted: Wanted) -> list[Found]:
    """The ways to read a dict as the whole network, or else the one that comes closest."""
    plain = _with_prefixes(keys, items, (), wanted)
    inner = {part for name in wanted.names for part in name.split(".")}
    around = tuple(one for one in _AROUND if one not in inner)
    cut = [] if plain[0].whole else _with_prefixes(keys, items, around, wanted)
    for read in (plain, cut):
        if whole := [one for one in read if one.whole]:
            # Where the names are the network's as they are, no prefix is looked for.
            return [one for one in whole if not one.prefix] or whole
    closest = plain[0]
    if closest.prefix and wanted.names and 2 * closest.hits < len(wanted.needed):
        return [_read(keys, items, {}, "", wanted)]
    return [closest]


def _with_prefixes(
    keys: tuple[str, ...], items: Mapping[Any, Any], around: tuple[str, ...], wanted: Wanted
) -> list[Found]:
    """A dict, read with each prefix that gives names of the network, the best first."""
    names = [name for name in items if isinstance(name, str) and name != _COUNTER]
    cut = {name: ".".join(p for p in name.split(".") if p not in around) for name in names}
    if not around or len(set(cut.values())) < len(cut):
        cut = {}
    prefixes = _prefixes([cut.get(name, name) for name in names], wanted)
    return [_read(keys, items, cut, prefix, wanted) for prefix in prefixes]


def _prefixes(names: list[str], wanted: Wanted) -> list[str]:
    """What may stand before the names of the network, the commonest first; at least one."""
    if not wanted.names:
        return [_of_wrappers(names)]
    depth = max(name.count(".") for name in wanted.names) + 1
    hits: Counter[str] = Counter()
    for name in names:
        parts = name.rsplit(".", depth)
        for count in range(1, len(parts) + 1):
            rest = ".".join(parts[-count:])
            if rest in wanted.names:
                hits[name[: len(name) - len(rest)]] += 1
    return sorted(hits, key=lambda prefix: (-hits[prefix], len(prefix)))[:8] or [""]


def _of_wrappers(names: list[str]) -> str:
    """The wrappers' names that stand before every name."""
    prefix = ""
    while more := [f"{prefix}{one}." for one in _AROUND if _all_begin(names, f"{prefix}{one}.")]:
        prefix = more[0]
    return prefix


def _all_begin(names: list[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _read(
    keys: tuple[str, ...],
    items: Mapping[Any, Any],
    cut: Mapping[str, str],
    prefix: str,
    wanted: Wanted,
) -> Found:
    inner = {name: cut.get(name, name) for name in items if name != _COUNTER}
    taken = {
        short.removeprefix(prefix) if isinstance(short, str) else short: items[name]
        for name, short in inner.items()
        if not isinstance(short, str) or short.startswith(prefix)
    }
    others = [s for s in inner.values() if isinstance(s, str) and not s.startswith(prefix)]
    parts = {part for name, short in cut.items() if name != short for part in name.split(".")}
    said = (*keys, prefix)
    return Found(
        keys=keys,
        prefix=prefix,
        around=tuple(sorted(parts & set(_AROUND))),
        averaged=_COUNTER in items or any(map(is_averaged, said)),
        items=taken,
        others=tuple(others),
        hits=sum(name in wanted.names for name in taken),
        whole=bool(wanted.needed) and all(name in taken for name in wanted.needed),
    )
