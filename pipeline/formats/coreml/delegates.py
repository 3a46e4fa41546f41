"""Where a Core ML package runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.formats.delegates import Delegate, unknown

_WHY = (
    "Apple lists no operations by unit; Core ML's compute plan, on an Apple system, says where "
    "each operation of a package runs"
)
_PLAN = "https://developer.apple.com/documentation/coreml/mlcomputeplan"

_GUIDE = "https://apple.github.io/coremltools/docs-guides/source"
_TABLES = (
    "with int8 activations, weights that are looked up in a table of int8 numbers are computed in "
    "int8 from A17 Pro and M4 on; whether a table for every channel is, it does not say: "
    f"{_GUIDE}/opt-joint-compression.html"
)
_INT4 = (
    "int4 weights should have a scale for every channel here, as these have; whether they are "
    f"computed in int8 with int8 activations, it does not say: {_GUIDE}/opt-quantization-perf.html"
)
_UNPACKS = (
    "weights are unpacked when a package is loaded, here and sometimes on the GPU: "
    f"{_GUIDE}/opt-quantization-perf.html"
)


def checked(path: Path) -> tuple[Delegate, ...]:
    """What is known of Core ML's units and a package.

    Elsewhere than on Apple systems that is nothing but what Apple's guide to coremltools says of
    weights with fewer bits than 8, where a package has them.
    """
    tables, int4 = _few_bits(path)
    said = {
        "CPU": [_UNPACKS] if tables or int4 else [],
        "Neural Engine": [_TABLES] * tables + [_INT4] * int4,
    }
    return tuple(
        unknown(f"Core ML, {unit}", _WHY, _PLAN, note=_note(said.get(unit, [])))
        for unit in ("CPU", "GPU", "Neural Engine")
    )


def _note(said: list[str]) -> str | None:
    return f"Apple's guide: {'; '.join(said)}" if said else None


def _few_bits(path: Path) -> tuple[bool, bool]:
    """Whether a package has weights that are looked up in tables, and weights of int4."""
    from pipeline.formats.coreml import package as coreml_package

    function: Any = coreml_package.specification(path).mlProgram.functions["main"]
    makers = [
        op
        for op in function.block_specializations[function.opset].operations
        if op.type.startswith("constexpr_")
    ]
    given = [a for op in makers for argument in op.inputs.values() for a in argument.arguments]
    types = {coreml_package.type_name(a.value.type.tensorType) for a in given if not a.name}
    return any(op.type.startswith("constexpr_lut_") for op in makers), "int4" in types
