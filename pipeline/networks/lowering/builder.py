"""Adds operations to a graph, each with the shape of what it gives and its place in the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pipeline.base.errors import InputError
from pipeline.networks.lowering.places import FloatPlaces

aten = torch.ops.aten


class Unsupported(Exception):
    """An operation has no form that every runtime has in int8; says why, in a clause."""


ONLY_FLOAT = "only in float"
"""Key of an operation's `meta` that says that not every runtime has it in int8."""
_OF_CHANCE_OR_STATE = {aten.dropout.default, aten.batch_norm.default, aten.add_.Tensor}
"""Operations that give other numbers each time, or change a tensor."""
_KEPT = ("nn_module_stack", "stack_trace")
"""What of an operation's `meta` says where it stands."""


class Builder:
    """The new graph of a network, as far as it is written.

    Attributes:
        model: whose parameters the graph reads; changed in place.
        graph: the new one.
        floats: what of the network stays in float.
        only_float: whether what is added from now on is known in float only.
    """

    def __init__(
        self,
        model: fx.GraphModule,
        floats: FloatPlaces = FloatPlaces(),  # noqa: B008  frozen
    ) -> None:
        self.model = model
        self.floats = floats
        self.only_float = False
        self.graph = fx.Graph()
        self._source: fx.Node | None = None
        self._made: dict[str, fx.Node] = {}
        self._read: dict[str, fx.Node] = {}
        self._forms: dict[str, tuple[int, ...]] = {}
        placeholder = next(node for node in model.graph.nodes if node.op == "placeholder")
        self._fake = placeholder.meta["val"].fake_mode

    def at(self, node: fx.Node) -> None:
        """What is added from now on stands where `node` stood in the old graph."""
        self._source = node

    def place(self) -> str:
        """The path of the module that holds the operation that is being written."""
        stack = self._source.meta.get("nn_module_stack", {}) if self._source is not None else {}
        paths = [path for path, _ in stack.values()]
        return str(paths[-1]) if paths else ""

    def copy(self, node: fx.Node) -> fx.Node:
        """An input of the old graph in the new one."""
        copied = self.graph.node_copy(node)
        copied.meta = dict(node.meta)
        return copied

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Add an operation; parameters may be given as the old graph has them.

        What is computed already is not computed again: converters would make one of both, and a
        file would lack what the program has.
        """
        args, kwargs = fx.node.map_arg((args, kwargs), self._new)
        key = repr((target, args, sorted(kwargs.items())))  # nodes of a graph have unlike names
        if key in self._made and target not in _OF_CHANCE_OR_STATE:
            return self._made[key]
        # As torch.export names it: conv2d, conv2d_1, ...
        name = target._schema.name.rpartition("::")[2]
        node = self.graph.create_node("call_function", target, args, kwargs, name)
        given = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self._fake, torch.no_grad(), self._fake.shape_env.suppress_guards():
            node.meta["val"] = target(*given[0], **given[1])
        if self._source is not None:
            meta = self._source.meta
            node.meta.update({name: meta[name] for name in _KEPT if name in meta})
        if self.only_float:
            node.meta[ONLY_FLOAT] = True
        self._made[key] = node
        return node

    def _new(self, node: fx.Node) -> fx.Node:
        """A parameter of the old graph is read when an operation needs it as it is."""
        if node.graph is self.graph:
            return node
        if node.op != "get_attr":
            raise Unsupported("reads a tensor that the network makes anew for every image")
        return self.read(str(node.target))

    def read(self, path: str) -> fx.Node:
        """Read a parameter or buffer, by its path."""
        if path not in self._read:
            first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
            where = self.graph.inserting_before(first) if first else self.graph.inserting_after()
            with where:
                node = self.graph.get_attr(path)
            node.meta["val"] = self._fake.from_tensor(self.tensor(path), static_shapes=True)
            self._read[path] = node
        return self._read[path]

    def tensor(self, path: str) -> Tensor:
        """The parameter or buffer of a path."""
        parent, _, name = path.rpartition(".")
        value: Tensor = getattr(self.model.get_submodule(parent), name)
        return value

    def reshaped(self, path: str, shape: Sequence[int]) -> fx.Node:
        """Read a parameter in another shape, which it has from then on.

        Raises:
            InputError: another operation reads it in a third shape.
        """
        return self.changed(path, lambda value: value.reshape(tuple(shape)), tuple(shape))

    def changed(
        self, path: str, change: Callable[[Tensor], Tensor], form: tuple[int, ...]
    ) -> fx.Node:
        """Read a parameter as `change` makes it, which it is from then on.

        Args:
            path: of the parameter.
            change: from the old value to the new one.
            form: tells one change from another; every reader must ask for the same.

        Raises:
            InputError: another reader asked for another change, or for none.
        """
        if self._forms.get(path, form) != form or (path in self._read and path not in self._forms):
            raise InputError(
                f"{self.place() or 'the network'}: shares {path} with another operation, which "
                "needs it otherwise; give each operation weights of its own"
            )
        if path not in self._forms:
            before = self.tensor(path)
            with torch.no_grad():
                after = change(before.detach()).clone().contiguous()
            self._forms[path] = form
            self._set(path, after, before.requires_grad)
        return self.read(path)

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Add a tensor that training leaves as it is, named after the module that it serves."""
        parent = self.place()
        base = f"{parent}.{name}" if parent else name
        path, number = base, 0
        while self._has(path):
            number += 1
            path = f"{base}_{number}"
        self._set(path, value, requires_grad=False)
        return self.read(path)

    def _has(self, path: str) -> bool:
        parent, _, name = path.rpartition(".")
        try:
            return hasattr(self.model.get_submodule(parent), name)
        except AttributeError:
            return False

    def _set(self, path: str, value: Tensor, requires_grad: bool) -> None:
        parent, _, name = path.rpartition(".")
        module: nn.Module = self.model
        for part in filter(None, parent.split(".")):
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        if hasattr(module, name):
            delattr(module, name)
        setattr(module, name, nn.Parameter(value, requires_grad=requires_grad))
