"""Where a Core ML package runs."""

from __future__ import annotations

from pathlib import Path

from pipeline.formats.delegates import Delegate, unknown

_WHY = (
    "Apple lists no operations by unit; Core ML's compute plan, on an Apple system, says where "
    "each operation of a package runs"
)
_PLAN = "https://developer.apple.com/documentation/coreml/mlcomputeplan"


def checked(path: Path) -> tuple[Delegate, ...]:
    """What is known of Core ML's units and a package: nothing, elsewhere than on Apple systems."""
    return tuple(
        unknown(f"Core ML, {unit}", _WHY, _PLAN) for unit in ("CPU", "GPU", "Neural Engine")
    )
