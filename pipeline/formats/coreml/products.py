"""Products of quantized tensors, written so that no compiler takes them for one operation.

A product in an int8 file is `dequantize`, `dequantize` -> `mul` -> `quantize`. The compiler of
Neural Engines is reported to compute such a group with one grid's scale in the place of another's:
a factor's integers times the scale of the product or of the other factor (apple/coreai-torch,
issue 112). On CPUs the same file is computed as it says.

Both passes here are the last of a conversion. Neither changes an answer:

- `clip_products` holds a product to what its grid can hold. `quantize` does so too, but the group
  is then another. Those who reported the fault saw right answers with it.
- `unquantize_products` reads the factors without `dequantize` besides: integers cast to float16,
  less the zero point, times the scale. That is what `dequantize` computes, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass
from numpy.typing import NDArray

_SPACE = "pocketnest"
CLIP = f"{_SPACE}::clip_products"
UNQUANTIZE = f"{_SPACE}::unquantize_products"
"""Of the passes, for a pass pipeline."""

_RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
_LARGEST = float(np.finfo(np.float16).max)


@register_pass(namespace=_SPACE, name=CLIP.split("::")[1], override=True)
class ClipProducts(AbstractGraphPass):  # type: ignore[misc]
    """Holds every product of quantized tensors to the range of the grid it is quantized on.

    before: dequantize, dequantize -> mul -> quantize
    after:  dequantize, dequantize -> mul -> clip -> quantize
    """

    def apply(self, prog: Any) -> None:
        """Rewrite every function of a MIL program, in place."""
        for function in prog.functions.values():
            self._rewrite(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _rewrite(self, block: Any) -> None:
        for op in list(block.operations):
            if _is_product(op):
                _clip(block, op)


@register_pass(namespace=_SPACE, name=UNQUANTIZE.split("::")[1], override=True)
class UnquantizeProducts(AbstractGraphPass):  # type: ignore[misc]
    """Has every product of quantized tensors read them in float16; clips it, too.

    before: dequantize, dequantize -> mul -> quantize
    after:  cast -> sub zero point -> mul scale, for each -> mul -> clip -> quantize

    What else reads a factor does so by `dequantize` as before.
    """

    def apply(self, prog: Any) -> None:
        """Rewrite every function of a MIL program, in place."""
        for function in prog.functions.values():
            self._rewrite(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _rewrite(self, block: Any) -> None:
        for op in list(block.operations):
            if not _is_product(op):
                continue
            factors = [_in_float16(op, factor) for factor in (op.x, op.y)]
            product = mb.mul(x=factors[0], y=factors[1], before_op=op, name=f"{op.name}_float16")
            block.replace_uses_of_var_after_op(
                anchor_op=op, old_var=op.outputs[0], new_var=product, no_check_var_types=True
            )
            _clip(block, product.op)
            read = [factor.op for factor in (op.x, op.y)]
            block.remove_ops([op])
            unread = {id(r): r for r in read if _is(r, "dequantize") and not r.outputs[0].child_ops}
            block.remove_ops(list(unread.values()))


def _is(op: Any, kind: str) -> bool:
    return op is not None and op.op_type == kind


def _is_product(op: Any) -> bool:
    """Whether an operation multiplies quantized tensors and its result is quantized at once."""
    if op.op_type != "mul" or not any(_is(factor.op, "dequantize") for factor in (op.x, op.y)):
        return False
    readers = op.outputs[0].child_ops
    return bool(readers) and all(_is(reader, "quantize") for reader in readers)


def _clip(block: Any, op: Any) -> None:
    """Put a `clip` between a product and what quantizes it."""
    (reader, *_) = op.outputs[0].child_ops
    low, high = _held(reader)
    clipped = mb.clip(
        x=op.outputs[0], alpha=low, beta=high, before_op=reader, name=f"{op.name}_held"
    )
    block.replace_uses_of_var_after_op(
        anchor_op=clipped.op, old_var=op.outputs[0], new_var=clipped, no_check_var_types=True
    )


def _held(quantize: Any) -> tuple[np.float16, np.float16]:
    """The smallest and the largest number of a grid, in float16.

    Rounding them moves neither by half a step, so that what is cut off would be quantized the same.
    """
    lowest, highest = _RANGES[str(quantize.output_dtype.val)]
    scale, zero = float(quantize.scale.val), _zero_point(quantize)
    low, high = (
        np.float16(np.clip((end - zero) * scale, -_LARGEST, _LARGEST)) for end in (lowest, highest)
    )
    return low, high


def _in_float16(op: Any, factor: Any) -> Any:
    """A factor without `dequantize`; as it is where it is none."""
    if not _is(factor.op, "dequantize"):
        return factor
    read = factor.op
    name = f"{op.name}_{'x' if factor is op.x else 'y'}"
    value = mb.cast(x=read.input, dtype="fp16", before_op=op, name=f"{name}_integers")
    if zero := _zero_point(read):
        value = mb.sub(x=value, y=np.float16(zero), before_op=op, name=f"{name}_from_zero")
    return mb.mul(x=value, y=_scale(read), before_op=op, name=f"{name}_scaled")


def _scale(op: Any) -> NDArray[np.float16]:
    return np.float16(op.scale.val)  # type: ignore[return-value]


def _zero_point(op: Any) -> int:
    return 0 if op.zero_point is None else int(op.zero_point.val)
