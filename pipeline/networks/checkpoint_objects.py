"""What stands in a pickle for tensors, dicts and all else: data, nothing of which is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_DIMENSIONS = 64
"""Of a tensor; torch's own limit."""

_KEYS = (str, int, float, bool, bytes, type(None))
"""What a key of a dict may be: a tuple of tuples of tuples would be hashed without an end."""


@dataclass(frozen=True)
class Inert:
    """An object that is no weight: the name of its class or function, and nothing of it."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers of tensors, by where the file has them.

    Attributes:
        kind: name of torch's storage type, such as `FloatStorage`.
        key: of the file's own.
        count: numbers in the whole storage.
        begin: of the part that is meant, in numbers.
    """

    kind: str
    key: str
    count: int
    begin: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        storage: its numbers.
        offset: of its first number there.
        size: of every dimension.
        stride: of every dimension, in numbers.
        dtype: name of torch's type where the storage has none.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None


def pairs(items: list[Any]) -> dict[Any, Any]:
    """The dict of keys and values that come in turn."""
    keys = [key if isinstance(key, _KEYS) else Inert(_named(key)) for key in items[::2]]
    return dict(zip(keys, items[1::2], strict=True))


def _named(value: Any) -> str:
    return value.name if isinstance(value, Inert) else type(value).__name__


def imported(module: str, name: str) -> Inert:
    """What a pickle would import."""
    module = "builtins" if module == "__builtin__" else module
    return Inert(f"{module}.{name}")


def called(function: Any, arguments: Any) -> Any:
    """What a call in the file stands for.

    Raises:
        ValueError, TypeError, LookupError: it is one for a tensor, but not as torch writes it.
    """
    made = _MADE.get(function.name) if isinstance(function, Inert) else None
    if made is not None:
        return made(*arguments)
    # Objects of the oldest protocols are made by a function that is given their class.
    if _named(function).endswith("._reconstructor") and isinstance(arguments[0], Inert):
        function = arguments[0]
    return Inert(_named(function))


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: str | None = None
) -> StoredTensor:
    few = len(size) == len(stride) <= _MOST_DIMENSIONS
    if not few or not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *size, *stride)):
        raise ValueError("a tensor is not described as torch describes one")
    if not isinstance(storage, Storage):
        raise ValueError("a tensor is not described as torch describes one")
    return StoredTensor(storage, offset, tuple(size), tuple(stride), dtype)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    return _tensor(storage, offset, size, stride, dtype=_named(dtype))


def _ordered(given: Any = None, *_: Any) -> dict[Any, Any]:
    items = [value for pair in given or () for value in pair[:2]]
    if given:
        given.clear()  # so that a file cannot have the same long list copied again and again
    return pairs(items)


def _odd(kind: str) -> Callable[..., Inert]:
    return lambda *_: Inert(f"Tensor ({kind})")


_UTILS = "torch._utils._rebuild"
_MADE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    f"{_UTILS}_tensor": _tensor,
    f"{_UTILS}_tensor_v2": _tensor,
    f"{_UTILS}_tensor_v3": _typed_tensor,
    f"{_UTILS}_parameter": lambda data, *_: data,
    f"{_UTILS}_parameter_with_state": lambda data, *_: data,
    f"{_UTILS}_sparse_tensor": _odd("sparse"),
    f"{_UTILS}_qtensor": _odd("quantized"),
    f"{_UTILS}_meta_tensor_no_storage": _odd("without values"),
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, made_of, *_: called(
        function, made_of
    ),
}
"""What is made of the calls that torch writes for tensors and their dicts."""


def stored(saved: Any) -> Any:
    """What torch keeps outside of the pickle: a storage, or the source text of a class.

    Raises:
        ValueError, TypeError, LookupError: it is neither.
    """
    if not isinstance(saved, tuple) or len(saved) < 2:
        raise ValueError("refers to something outside of the pickle")
    if saved[0] == "module":
        return saved[1]
    what, kind, key, _, count, *view = saved
    if what != "storage" or not isinstance(kind, Inert) or type(count) is not int or count < 0:
        raise ValueError("refers to something outside of the pickle")
    begin = view[0][1] if view and view[0] is not None else 0
    if type(begin) is not int or begin < 0 or not isinstance(key, str | int):
        raise ValueError("refers to something outside of the pickle")
    return Storage(kind.name.rpartition(".")[2], str(key), count, begin)
