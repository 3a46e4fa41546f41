"""Which of a checkpoint's tensors are the network's, and by what names.

Programs that train put the weights into dicts of dicts, beside averages of them, and before every
name what the module was wrapped in. What is right is known by the network: a set of tensors is
taken, and a prefix taken off, where the names are the network's then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.networks.checkpoint_files import OpenFile
from pipeline.networks.checkpoint_objects import Inert, StoredTensor

Kind = Literal["ema", "raw"]
"""Of weights: averaged over the steps of a training, or as the last step left them."""

Leaf = Tensor | StoredTensor

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("weights", "params", "module"),
)
"""Keys that weights are commonly under, the likeliest first."""

_AVERAGED = {"ema", "swa", "averaged", "average"}
"""Words of a key that say so."""

_NO_WEIGHTS = {"optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler"}
"""Words of a key under which tensors are of the weights' names and shapes, but others."""

_COUNTER = "n_averaged"
"""What torch's AveragedModel puts beside its `module.`."""

_AROUND = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What wrappers of torch call the module in them; a part of a network may be wrapped, too."""

_LEVELS = 4
"""Of dicts in dicts in which weights are looked for."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Names of a network's tensors.

    Attributes:
        names: all of them.
        needed: those that a file must have.
    """

    names: Collection[str] = ()
    needed: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
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


def choose(file: OpenFile, wanted: Wanted, kind: Kind) -> tuple[Found, list[Found]]:
    """The set of tensors to take, and the other ones that would fit.

    Args:
        file: that is open.
        wanted: the network's names; without any the likeliest set is taken, and no prefix is taken
            off but those of torch's wrappers.
        kind: `ema` takes averaged weights where there are any.

    Raises:
        InputError: there are no tensors by name, the kind is not there, or several sets fit alike.
    """
    found = [one for keys, items in _dicts(file.content) for one in _readings(keys, items, wanted)]
    if not found:
        raise InputError(f"{file.path}: {_without_tensors(file.content)}")
    whole = [one for one in found if one.whole]
    if not whole:
        averaged = kind == "ema"
        return max(found, key=lambda one: (one.hits, one.averaged == averaged, _rank(one))), []
    alike = [one for one in whole if one.averaged == (kind == "ema")]
    if not alike and kind == "raw":
        raise InputError(
            f"{file.path}: holds averaged weights alone ({whole[0].place}), and model.weights is "
            "raw; set model.weights: ema"
        )
    best = max(alike or whole, key=_rank)
    same = [one.place for one in alike or whole if _rank(one)[0] == _rank(best)[0]]
    if len(same) > 1:
        raise InputError(
            f"{file.path}: holds several sets of weights that fit: {listed(sorted(same))}; save "
            "the one that is meant alone"
        )
    return best, [one for one in whole if one is not best]


def _rank(one: Found) -> tuple[int, int]:
    """How likely a set is the one that is meant: by its keys, then by its number of tensors."""

    def place(key: str) -> int:
        known = key in WRAPPERS
        return WRAPPERS.index(key) if known else 0 if _words(key) & _AVERAGED else _UNKNOWN

    return -max(map(place, one.keys), default=len(WRAPPERS)), len(one.items)


_UNKNOWN = len(WRAPPERS) + 1


def _words(text: str) -> set[str]:
    return set(re.split(r"[^a-z]+", text.lower()))


def _dicts(
    content: Any, keys: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Every dict that holds tensors by name, and the keys that lead to it."""
    seen = set() if seen is None else seen
    if not isinstance(content, dict) or id(content) in seen or len(keys) > _LEVELS:
        return
    seen.add(id(content))
    if any(isinstance(key, str) and isinstance(value, Leaf) for key, value in content.items()):
        yield keys, content
    for key, value in content.items():
        if isinstance(key, str) and not _words(key) & _NO_WEIGHTS:
            yield from _dicts(value, (*keys, key), seen)


def _readings(keys: tuple[str, ...], items: Mapping[Any, Any], wanted: Wanted) -> list[Found]:
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
        averaged=_COUNTER in items or any(_words(key) & _AVERAGED for key in said),
        items=taken,
        others=tuple(others),
        hits=sum(name in wanted.names for name in taken),
        whole=bool(wanted.needed) and all(name in taken for name in wanted.needed),
    )


def plain_tensors(file: OpenFile, found: Found, wanted: Wanted) -> dict[str, Tensor]:
    """The tensors of a set, by the network's names.

    What else stands among them is left out, where its name is not the network's.

    Raises:
        InputError: something else than a tensor is there in a tensor's place.
    """
    taken = {}
    for name, value in found.items.items():
        if isinstance(name, str) and isinstance(value, Leaf):
            taken[name] = value
        elif not _may_stand_there(name, wanted):
            raise InputError(f"{file.path}: {_no_tensor(name, value)}")
    return {name: file.tensor(value) for name, value in taken.items()}


def _may_stand_there(name: Any, wanted: Wanted) -> bool:
    if not isinstance(name, str):
        return False
    if name.rpartition(".")[2] == "_extra_state":  # what a module saves beside its tensors
        return True
    return bool(wanted.names) and name not in wanted.names


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return value.name
    return "Tensor" if isinstance(value, Leaf) else type(value).__name__


def _no_tensor(name: Any, value: Any) -> str:
    if isinstance(value, Inert) and not value.name.startswith("Tensor"):
        return (
            f"holds {value.name[:120]}, which is no weight and could run code, so it was not "
            "loaded; save the weights alone: torch.save(model.state_dict(), path)"
        )
    short = isinstance(name, str) or (isinstance(name, int) and abs(name) < 2**63)
    shown = str(name)[:80] if short else _kind(name)
    return (
        f"is not a dict of plain tensors by name: {shown!r} is a {_kind(value)}; save "
        "model.state_dict() alone"
    )


def _without_tensors(content: Any) -> str:
    """Why there is nothing to take from a content."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict | Inert):
            content = content[wrapper]
    if isinstance(content, Inert):
        return _no_tensor("", content)
    if not isinstance(content, dict):
        return f"holds a {_kind(content)}, not a dict of tensors"
    if not content:
        return "holds no tensors"
    return _no_tensor(*next(iter(content.items())))
