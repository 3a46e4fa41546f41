"""Which operations of a network a recipe leaves in float: those of the modules that it names.

places = FloatPlaces(("features.18.*", "classifier"))
places.refuse_unknown(model)
places.hold(node)    # whether an operation of the exported network stands in one of them
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import fx, nn

from pipeline.base.errors import InputError, listed

_NEAR, _SHOWN = 3, 5
_LIKENESS = 0.4
"""Of a pattern and a module's path; a pattern with wildcards is unlike every path."""
_CALLED_AGAIN = re.compile(r"@\d+")
"""What torch.export adds to the path of a module that is called once more."""


@dataclass(frozen=True)
class FloatPlaces:
    """The modules of a network that stay in float, and all that they hold.

    Attributes:
        patterns: of the paths of modules, as `fnmatch` has them: `*` stands for any letters, dots
            among them.
    """

    patterns: tuple[str, ...] = ()

    def hold(self, node: fx.Node) -> bool:
        """Whether a module that holds an operation is one of them.

        A list of modules holds them as well, though it is never called.
        """
        return bool(self.patterns) and any(map(self.hold_path, module_paths(node)))

    def hold_path(self, path: str) -> bool:
        """Whether a module of this path, or one that holds it, is one of them."""
        parts = path.split(".")
        paths = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(fnmatchcase(one, pattern) for one in paths for pattern in self.patterns)

    def refuse_unknown(self, model: nn.Module) -> None:
        """Stop at a pattern that is no module's.

        Raises:
            InputError: gives paths of modules that are near.
        """
        names = [name for name, _ in model.named_modules() if name]
        for pattern in self.patterns:
            if any(fnmatchcase(name, pattern) for name in names):
                continue
            near = difflib.get_close_matches(pattern, names, _NEAR, _LIKENESS)
            found = f"near are {listed(near)}" if near else f"it has {listed(names[:_SHOWN])}, ..."
            raise InputError(
                f"qat.float: got {pattern!r}, which is no module of the network; {found}; "
                "`pocketnest inspect` lists its layers"
            )


def module_paths(node: fx.Node) -> tuple[str, ...]:
    """The paths of the modules that hold an operation, the outermost first, the network left out.

    An operation of the network's own `forward` has none.
    """
    stack = node.meta.get("nn_module_stack", {}).values()
    return tuple(path for path in (_CALLED_AGAIN.sub("", one) for one, _ in stack) if path)
