"""A quantized program, run faster: the same numbers to the bit.

run = rounding_at_once(program)
logits = run(images)
"""

from __future__ import annotations

from typing import Any

import torch
import torchao.quantization.pt2e  # noqa: F401  registers the quantized_decomposed operations
from torch import Tensor, fx

quantized = torch.ops.quantized_decomposed
_QUANTIZE = quantized.quantize_per_tensor.default
_DEQUANTIZE = quantized.dequantize_per_tensor.default
_WEIGHTS = quantized.dequantize_per_channel.default


def rounding_at_once(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A program whose tensors are rounded in place, and whose weights are float numbers already.

    before: y = dequantize(quantize(x, s, z), s, z);  w = dequantize_per_channel(integers, t)
    after:  y = rounded(x, s, z);                     w is a constant

    So no tensor is made int8 and float again, which takes most of a program's time. Of a float
    program nothing changes.
    """
    model = program.module(check_guards=False)
    assert isinstance(model, fx.GraphModule)
    for node in [n for n in model.graph.nodes if n.target is _QUANTIZE]:
        readers = list(node.users)
        if all(
            reader.target is _DEQUANTIZE and reader.args[1:] == node.args[1:] for reader in readers
        ):
            with model.graph.inserting_after(node):
                once = model.graph.call_function(rounded, node.args)
            for reader in readers:
                reader.replace_all_uses_with(once)
    for index, node in enumerate([n for n in model.graph.nodes if n.target is _WEIGHTS]):
        _make_constant(model, node, f"float_weight_{index}")
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def rounded(
    numbers: Tensor, scale: float, zero_point: int, first: int, last: int, _: torch.dtype
) -> Tensor:
    """What quantizing and dequantizing make of numbers."""
    steps = torch.mul(numbers, 1.0 / scale).round_()
    return steps.clamp_(first - zero_point, last - zero_point).mul_(scale)


def _make_constant(model: fx.GraphModule, node: fx.Node, name: str) -> None:
    given = [_value(model, argument) for argument in node.args]
    with torch.no_grad():
        model.register_buffer(name, _WEIGHTS(*given, **node.kwargs))
    with model.graph.inserting_before(node):
        constant = model.graph.get_attr(name)
    node.replace_all_uses_with(constant)


def _value(model: fx.GraphModule, argument: Any) -> Any:
    if not isinstance(argument, fx.Node):
        return argument
    value: Any = model
    for part in str(argument.target).split("."):
        value = getattr(value, part)
    return value.detach()
