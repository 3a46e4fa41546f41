"""The names of a package's quantized tensors: those of the program's layers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from pipeline.formats import as_onnx
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.file_facts import Grid

quantized = torch.ops.quantized_decomposed


def quantize_names(program: torch.export.ExportedProgram) -> dict[str, str]:
    """The name of every quantized tensor, by what is quantized: a node, or the file's input."""
    names = {}
    for node in program.graph.nodes:
        if node.target is quantized.quantize_per_tensor.default:
            source = node.args[0]
            names[as_onnx.INPUT if source.op == "placeholder" else source.name] = node.name
    return names


def stamp_names(path: Path, names: dict[str, str], grids: dict[str, Grid]) -> None:
    """Give the package's quantized tensors the names they have in the program.

    coremltools numbers them anew, but leaves the name of what is quantized alone, up to the
    ending it gives to float16 tensors (`_to_fp16` where it casts the image). Where it takes a
    float operation out that changes nothing, the one before it is quantized: the tensor is then the
    first of the program's that is left and has its grid.

    before: conv2d_1_cast_fp16 -> quantize -> quantize_7_cast_fp16 -> dequantize
    after:  conv2d_1_cast_fp16 -> quantize -> quantize_per_tensor_3 -> dequantize

    Args:
        path: of the package.
        names: of `quantize_names`.
        grids: of the program's quantized tensors, by their names (`file_facts.learned_scales`).

    Raises:
        RuntimeError: a quantized tensor of the package is none of the program's.
    """
    found = _found_names(path, names, grids)
    spec = coreml_package.specification(path)
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    renamed: dict[str, str] = {}
    for op in operations:
        if op.type == "quantize":
            before, source = op.outputs[0].name, op.inputs["input"].arguments[0].name
            name = found.get(before)
            if name is None or name in renamed.values():
                raise RuntimeError(
                    f"{path}: operation quantize '{before}' reads '{source}', which the program "
                    f"{'does not quantize' if name is None else 'quantizes once only'}; a pass of "
                    "coremltools must have renamed it"
                )
            renamed[before] = name
    for op in operations:
        for argument in (a for given in op.inputs.values() for a in given.arguments):
            if argument.name in renamed:
                argument.name = renamed[argument.name]
        for value in op.outputs:
            if value.name in renamed:
                value.name = renamed[value.name]
                op.attributes["name"].immediateValue.tensor.strings.values[0] = value.name
    made = Counter(value.name for op in operations for value in op.outputs)
    if renamed and made.most_common(1)[0][1] > 1:
        raise RuntimeError(f"{path}: two tensors are named '{made.most_common(1)[0][0]}'")
    for key in [key for key in spec.description.metadata.userDefined if key.endswith("date")]:
        del spec.description.metadata.userDefined[key]
    coreml_package.write_specification(spec, path)


def _found_names(path: Path, names: dict[str, str], grids: dict[str, Grid]) -> dict[str, str]:
    """The program's names of a package's quantized tensors, by those that they have there."""
    network = coreml_package.read(path)
    made_by = network.producers()
    quantizing = [op for op in network.operations if op.type == "quantize"]
    found = {}
    for op in quantizing:
        source = _source(op.tensor("input"), names, made_by)
        if source is not None:
            found[op.outputs[0].name] = names[source]
    left = [name for name in grids if name not in found.values()]
    for op in quantizing:
        tensor = op.outputs[0]
        grid = grid_of(op, made_by, tensor.dtype)
        if tensor.name not in found and grid in (grids[name] for name in left):
            found[tensor.name] = next(name for name in left if grids[name] == grid)
            left.remove(found[tensor.name])
    return found


def _source(
    name: str, names: dict[str, str], made_by: dict[str, coreml_package.Operation]
) -> str | None:
    """What is quantized, as the program names it; looked for behind a `clip` of ours, too."""
    for ending in ("", "_held", "_float16_held"):
        if not name.endswith(ending) or (ending and made_by[name].type != "clip"):
            continue
        node = name.removesuffix(ending).removesuffix("_cast_fp16").removesuffix("_to_fp16")
        if node in names:
            return node
    return None


def grid_of(
    op: coreml_package.Operation, made_by: dict[str, coreml_package.Operation], kind: str
) -> Grid:
    """Scale and zero point of a quantize or dequantize operation, the latter as for int8."""
    scale, zero_point = (op.constant(n, made_by) for n in ("scale", "zero_point"))
    assert scale is not None
    # coremltools writes int8 with zero point -128 as uint8 with none: the same grid.
    shift = 128 if kind == "uint8" else 0
    return float(scale), int(zero_point if zero_point is not None else 0) - shift
