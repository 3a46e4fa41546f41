"""Which of a checkpoint's tensors are the network's.

Programs that train put the weights into dicts of dicts, beside averages of them and the state of an
optimizer. The set of tensors is taken that has all that the network needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from pipeline.base.errors import InputError, listed
from pipeline.networks.checkpoint_files import OpenFile
from pipeline.networks.checkpoint_names import Found, Wanted, is_averaged, readings, words
from pipeline.networks.checkpoint_objects import Inert, StoredTensor

Kind = Literal["ema", "raw"]
"""Of weights: averaged over the steps of a training, or as the last step left them."""

Leaf = Tensor | StoredTensor

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("weights", "params", "module"),
)
"""Keys that weights are commonly under, the likeliest first."""

_NO_WEIGHTS = {"optimizer", "optimizers", "optim", "scheduler", "schedulers", "scaler"}
"""Words of a key under which tensors are of the weights' names and shapes, but others."""

_LEVELS = 4
"""Of dicts in dicts in which weights are looked for."""


def choose(file: OpenFile, wanted: Wanted, kind: Kind) -> tuple[Found, list[Found]]:
    """The set of tensors to take, and the other ones that are the network's or half of it.

    Args:
        file: that is open.
        wanted: the network's names; without any the likeliest set is taken, and no prefix is taken
            off but those of torch's wrappers.
        kind: `ema` takes averaged weights where there are any.

    Raises:
        InputError: there are no tensors by name, the kind is not there, or several sets fit alike.
    """
    found = [one for keys, items in _dicts(file.content) for one in readings(keys, items, wanted)]
    if not found:
        raise InputError(f"{file.path}: {_without_tensors(file.content)}")
    whole = [one for one in found if one.whole]
    if not whole:
        averaged = kind == "ema"
        return max(found, key=lambda one: (one.hits, one.averaged == averaged, _rank(one))), []
    alike = [one for one in whole if one.averaged == (kind == "ema")]
    if not alike and kind == "raw":
        raise InputError(
            f"{file.path}: holds averaged weights alone ({listed([whole[0].place])}), and "
            "model.weights is raw; set model.weights: ema"
        )
    best = max(alike or whole, key=_rank)
    rivals = [one for one in alike or whole if _rank(one)[0] == _rank(best)[0]]
    if not all(one is best or _same(one, best, wanted) for one in rivals):
        places = listed(sorted(one.place for one in rivals))
        raise InputError(
            f"{file.path}: holds several sets of weights that fit: {places}; save the one that is "
            "meant alone"
        )
    half = len(wanted.needed) / 2
    return best, [one for one in found if one not in rivals and one.hits >= half]


def _same(one: Found, other: Found, wanted: Wanted) -> bool:
    """Whether two sets are the same tensors, which had two names where they were saved."""
    pairs = [(one.items[name], other.items[name]) for name in wanted.needed]
    return all(isinstance(a, StoredTensor) and a == b for a, b in pairs)


def _rank(one: Found) -> tuple[int, int]:
    """How likely a set is the one that is meant: by its keys, then by its number of tensors."""

    def place(key: str) -> int:
        known = key in WRAPPERS
        return WRAPPERS.index(key) if known else 0 if is_averaged(key) else _UNKNOWN

    return -max(map(place, one.keys), default=len(WRAPPERS)), len(one.items)


_UNKNOWN = len(WRAPPERS) + 1


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
        if isinstance(key, str) and not words(key) & _NO_WEIGHTS:
            yield from _dicts(value, (*keys, key), seen)


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
