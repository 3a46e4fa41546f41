"""Importing coremltools without the packages that it looks for on its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_CONVERTED = ("tensorflow", "sklearn")
"""Packages whose models coremltools converts, too: seconds to import, and none is converted."""


def import_coremltools() -> None:
    """Import coremltools, which then takes TensorFlow and scikit-learn for not installed.

    What this process has imported already stays as it is.
    """
    if "coremltools" not in sys.modules:
        with _hidden(name for name in _CONVERTED if name not in sys.modules):
            import coremltools  # noqa: F401


@contextmanager
def _hidden(names: Iterator[str]) -> Iterator[None]:
    """Have imports of packages fail, as where they are not installed."""
    hidden = list(names)
    # What None stands for in `sys.modules` cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
