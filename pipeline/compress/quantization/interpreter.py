"""Graphs run node by node."""

from __future__ import annotations

from typing import Any

from torch import fx


class Interpreter(fx.Interpreter):
    """torch's interpreter, for graphs in which a module has several names."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module; torch's own table leaves out the second name of one that has two."""
        return self.fetch_attr(target)(*args, **kwargs)
