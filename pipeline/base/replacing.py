"""Other functions in the place of torch's own, for the calls of networks and exported graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class Replacing(TorchFunctionMode):
    """Inside, some functions of torch are replaced; `instead` takes the same arguments."""

    def __init__(self, instead: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self.instead = instead

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Any function of torch; what is not replaced is called as it is."""
        return self.instead.get(func, func)(*args, **(kwargs or {}))
