"""Operations of a program that a writer would not write exactly: each is refused by name.

refuse_divisors(program)    # InputError: avg_pool2d in layer1.0.pool: ...
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from pipeline.base.errors import InputError
from pipeline.networks.rewrites import adds_windows

aten = torch.ops.aten

_AVERAGE_POOLS = {aten.avg_pool2d.default}
_MAX_POOLS = {aten.max_pool2d.default, aten.max_pool2d_with_indices.default}


def refuse_divisors(program: torch.export.ExportedProgram) -> None:
    """Stop at an average pool that divides by a number of its own.

    torch's exporter to ONNX passes over it, and neither ONNX nor TFLite nor Core ML has it.

    Raises:
        InputError: names the operation and its module.
    """
    for node, given in _operations(program, _AVERAGE_POOLS):
        if given["divisor_override"] is not None:
            raise _refused(
                node,
                f"an average pool with divisor_override {given['divisor_override']}, which no file "
                "format has; leave it out, and scale the next convolution",
            )


def refuse_for_tflite(program: torch.export.ExportedProgram) -> None:
    """Stop at an operation that TFLite has in another form only.

    Raises:
        InputError: names the operation and its module, and what is allowed.
    """
    for node, given in _operations(program, {aten.mean.dim}):
        rank = len(_shape(node.args[0]))
        axes = sorted(axis % rank for axis in given["dim"] or range(rank))
        if rank != 4 or axes != [2, 3] or not given["keepdim"]:
            raise _refused(
                node,
                f"a mean over axes {axes} of {rank}, keepdim {given['keepdim']}; in a TFLite file "
                "it may be over height and width, axes 2 and 3 of 4, with keepdim",
            )
    for node, given in _operations(program, _MAX_POOLS):
        if set(given["dilation"]) != {1}:
            raise _refused(
                node,
                f"a max pool with dilation {given['dilation']}; in a TFLite file it may be 1 only",
            )
    for node, given in _operations(program, _AVERAGE_POOLS):
        if any(given["padding"]) and not given["count_include_pad"]:
            raise _refused(
                node,
                f"an average pool with padding {given['padding']} that does not count; in a TFLite "
                "file it may have no padding, or count_include_pad",
            )
        if given["ceil_mode"] and adds_windows(
            _shape(node.args[0])[2:], given["kernel_size"], given["stride"], given["padding"]
        ):
            raise _refused(
                node,
                "an average pool whose ceil_mode adds windows that are not whole; in a TFLite file "
                "windows must fit: change the input size, or leave ceil_mode out",
            )


def _operations(
    program: torch.export.ExportedProgram, targets: set[Any]
) -> Iterator[tuple[fx.Node, dict[str, Any]]]:
    """Nodes of some operations, with their arguments by name, defaults filled in."""
    for node in program.graph.nodes:
        if node.target in targets:
            found = {}
            for place, argument in enumerate(node.target._schema.arguments):
                default = node.kwargs.get(argument.name, argument.default_value)
                found[argument.name] = node.args[place] if place < len(node.args) else default
            yield node, found


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _refused(node: fx.Node, why: str) -> InputError:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    module = f" in {stack[-1][0]}" if stack else ""
    return InputError(f"{node.name}{module}: {why}")
