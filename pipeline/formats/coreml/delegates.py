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
_BLOCKS = (
    "int4 weights should have a scale for every channel here, and these have one for every block "
    "of inputs, which it recommends for GPUs; whether they are computed in int8 with int8 "
    f"activations, it does not say: {_GUIDE}/opt-quantization-perf.html"
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
    tables, int4, blocks = _few_bits(path)
    said = {
        "CPU": [_UNPACKS] if tables or int4 else [],
        "Neural Engine": [_TABLES] * tables + [_BLOCKS if blocks else _INT4] * int4,
    }
    return tuple(
        unknown(f"Core ML, {unit}", _WHY, _PLAN, note=_note(said.get(unit, [])))
        for unit in ("CPU", "GPU", "Neural Engine")
    )


def _note(said: list[str]) -> str | None:
    return f"Apple's guide: {'; '.join(said)}" if said else None


def _few_bits(path: Path) -> tuple[bool, bool, bool]:
    """Whether a package has tables of weights, weights of int4, and scales of blocks of them."""
    from pipeline.formats.coreml import package as coreml_package

    function: Any = coreml_package.specification(path).mlProgram.functions["main"]
    makers = [
        op
        for op in function.block_specializations[function.opset].operations
        if op.type.startswith("constexpr_")
    ]
    given = [a for op in makers for argument in op.inputs.values() for a in argument.arguments]
    types = {coreml_package.type_name(a.value.type.tensorType) for a in given if not a.name}
    scales = [a for op in makers if "scale" in op.inputs for a in op.inputs["scale"].arguments]
    shapes = [a.value.type.tensorType.dimensions for a in scales if not a.name]
    return (
        any(op.type.startswith("constexpr_lut_") for op in makers),
        "int4" in types,
        any(len(shape) > 1 and shape[1].constant.size > 1 for shape in shapes),
    )
