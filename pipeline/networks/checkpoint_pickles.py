"""Pickles of other programs, read as data: nothing in them is imported, called or built.

read_pickle(file)  # dicts, lists, numbers, text, tensors; what else there is, an `Inert`

`pickletools` takes a pickle apart into its steps, and the steps are followed here with plain
containers alone. A function or a class of the file is its name. Of the calls in the file those that
torch writes for a tensor become a `StoredTensor`, those for an ordered dict a dict, all else an
`Inert`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from pipeline.networks.checkpoint_objects import Inert, Storage, called, imported, pairs, stored

_MOST_STEPS = 5_000_000
"""Of a pickle. A checkpoint of a thousand tensors with its optimizer's state has 100,000."""


class Stretch:
    """A part of a file for reading; what claims to be longer than the part is refused unread."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._left = file, end - begin
        file.seek(begin)

    def read(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            EOFError: there are fewer.
        """
        if not 0 <= count <= self._left:
            raise EOFError("ends too early")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        """The rest of a line, its end included."""
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


def read_pickle(file: Stretch, storages: dict[str, Storage] | None = None) -> Any:
    """What the pickle at the file's place holds; the file is then behind it.

    Args:
        file: that the pickle stands in.
        storages: takes every storage that the pickle names, by its key.

    Raises:
        ValueError, EOFError, LookupError, TypeError: it is none, is damaged or far too long.
    """
    machine = _Machine({} if storages is None else storages)
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if count > _MOST_STEPS:
            raise ValueError("holds too many objects")
        if step.name == "STOP":
            return machine.stack.pop()
        machine.follow(step.name, argument)
    raise EOFError("ends too early")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def follow(self, step: str, argument: Any) -> None:
        """Do one step."""
        if step in _VALUES:
            self.stack.append(argument)
        elif step in _CONSTANTS:
            self.stack.append(_CONSTANTS[step]())
        elif step in _STEPS:
            _STEPS[step](self, argument)
        elif step not in ("PROTO", "FRAME"):
            raise ValueError(f"has a step {step}, which no checkpoint needs")

    def since_mark(self) -> list[Any]:
        """What was put on the stack since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def popped(self, count: int) -> list[Any]:
        """The last values, in order."""
        if len(self.stack) < count:
            raise ValueError("takes from an empty stack")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def set_items(self, items: list[Any]) -> None:
        """Keys and values in turn, for the dict at the end of the stack; objects keep none."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(pairs(items))

    def add(self, items: list[Any]) -> None:
        """Items for the list at the end of the stack; objects keep none."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)


def _stored(machine: _Machine, saved: Any) -> None:
    value = stored(saved)
    if isinstance(value, Storage):
        machine.storages[value.key] = value
    machine.stack.append(value)


def _build(machine: _Machine, _: Any) -> None:
    machine.popped(1)  # attributes of the object: none is kept


def _called_at_end(machine: _Machine, _: Any) -> None:
    machine.stack.append(called(*machine.popped(2)))


def _called_with_names(machine: _Machine, _: Any) -> None:
    function, arguments, _ = machine.popped(3)
    machine.stack.append(called(function, arguments))


def _called_since_mark(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.since_mark()
    machine.stack.append(called(function, arguments))


def _instance(machine: _Machine, argument: str) -> None:
    arguments = machine.since_mark()
    machine.stack.append(called(imported(*argument.split(" ", 1)), arguments))


def _from_stack(machine: _Machine, _: Any) -> None:
    module, name = machine.popped(2)
    machine.stack.append(imported(str(module)[:200], str(name)[:200]))


def _pop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _remember(machine: _Machine, argument: int | None) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _push(made: Callable[[_Machine], Any]) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        value = made(machine)  # before the stack is looked up: it may be another one then
        machine.stack.append(value)

    return step


def _known(machine: _Machine, argument: int) -> None:
    machine.stack.append(machine.memo[argument])


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE"),
    *("BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
}
"""Steps that put the value that stands in them on the stack."""

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Inert("set"),  # its items would be hashed
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.mark(),
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.since_mark().clear(),
    "DUP": _push(lambda machine: machine.stack[-1]),
    "TUPLE": _push(lambda machine: tuple(machine.since_mark())),
    "TUPLE1": _push(lambda machine: tuple(machine.popped(1))),
    "TUPLE2": _push(lambda machine: tuple(machine.popped(2))),
    "TUPLE3": _push(lambda machine: tuple(machine.popped(3))),
    "LIST": _push(lambda machine: machine.since_mark()),
    "DICT": _push(lambda machine: pairs(machine.since_mark())),
    "FROZENSET": _push(lambda machine: Inert(f"frozenset of {len(machine.since_mark())}")),
    "APPEND": lambda machine, _: machine.add(machine.popped(1)),
    "APPENDS": lambda machine, _: machine.add(machine.since_mark()),
    "ADDITEMS": lambda machine, _: machine.since_mark().clear(),
    "SETITEM": lambda machine, _: machine.set_items(machine.popped(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": lambda machine, name: machine.stack.append(imported(*name.split(" ", 1))),
    "STACK_GLOBAL": _from_stack,
    "INST": _instance,
    "OBJ": _called_since_mark,
    "NEWOBJ": _called_at_end,
    "NEWOBJ_EX": _called_with_names,
    "REDUCE": _called_at_end,
    "BUILD": _build,
    "PERSID": _stored,
    "BINPERSID": lambda machine, _: _stored(machine, *machine.popped(1)),
    "GET": _known,
    "BINGET": _known,
    "LONG_BINGET": _known,
    "PUT": _remember,
    "BINPUT": _remember,
    "LONG_BINPUT": _remember,
    "MEMOIZE": _remember,
}
