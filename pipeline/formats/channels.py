"""How many channels each tensor of a network has once some of its convolutions are narrower.

A format's reader lists its operations; what follows from what is the same for all formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["convolution", "concat", "elementwise", "reshape", "slice", "same"]
"""How an operation's channels follow from its inputs'.

A convolution sets them (a depthwise one does not: "same"), the operands of an element-wise
operation must agree, a concatenation has those of all inputs, a reshape keeps the ratio of its
output's to its input's. A slice takes every `step`-th from `start` to the last; one of step 1 the
same share of them, such as the second half. All else leaves them as they are.
"""


@dataclass(frozen=True, kw_only=True)
class ChannelOperation:
    """One operation of a file, as far as channels go.

    Attributes:
        layer: name of the layer that it, or the rounding after it, gives out.
        kind: how its channels follow.
        inputs: the tensors it reads that are no constants.
        output: the tensor it makes.
        channels: of a convolution's or reshape's output as the file is.
        groups: of a convolution.
        start: of a slice.
        stop: of a slice; it must reach the last channel, unless its step is 1.
        step: of a slice.
    """

    layer: str
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    channels: int = 0
    groups: int = 1
    start: int = 0
    stop: int = 0
    step: int = 1


def channels_after(
    operations: Sequence[ChannelOperation], given: Mapping[str, int], widths: Mapping[str, int]
) -> dict[str, int]:
    """The channels of every tensor once the convolutions named in `widths` have that many.

    Args:
        operations: of the whole network, in the order of computation.
        given: channels of the network's inputs, which stay.
        widths: new output channels by layer name, of any convolution but the last, which sets
            the network's output.

    Raises:
        ValueError: a name is none of these, a width is below 1 or above the present one, its
            groups do not divide a convolution's channels, or operands do not match.
    """
    _check(operations, widths)
    before, after = dict(given), dict(given)
    for operation in operations:
        present = [before[tensor] for tensor in operation.inputs]
        new = [after[tensor] for tensor in operation.inputs]
        if operation.kind == "convolution":
            width = widths.get(operation.layer, operation.channels)
            _check_groups(operation, new[0], width)
            before[operation.output], after[operation.output] = operation.channels, width
        else:
            before[operation.output] = _following(operation, present, present)
            after[operation.output] = _following(operation, present, new)
    return after


def _check(operations: Sequence[ChannelOperation], widths: Mapping[str, int]) -> None:
    convolutions = [o for o in operations if o.kind == "convolution"][:-1]
    present = {o.layer: o.channels for o in convolutions}
    unknown = sorted(widths.keys() - present.keys())
    if unknown:
        raise ValueError(
            f"widths: {', '.join(unknown)} is no convolution of this file that can be narrower; "
            f"those are {', '.join(present)}"
        )
    for layer, width in widths.items():
        if not 1 <= width <= present[layer]:
            raise ValueError(f"widths: {layer} got {width}; it can have 1 to {present[layer]}")


def _check_groups(operation: ChannelOperation, inputs: int, outputs: int) -> None:
    for side, count in (("input", inputs), ("output", outputs)):
        if count % operation.groups:
            raise ValueError(
                f"{operation.layer}: {count} {side} channels cannot be divided among its "
                f"{operation.groups} groups; take a multiple of {operation.groups}"
            )


def _following(operation: ChannelOperation, present: list[int], new: list[int]) -> int:
    """Channels of the output of anything but a convolution, for inputs of `new` channels."""
    if operation.kind == "elementwise" and len(set(new)) > 1:
        raise ValueError(
            f"{operation.layer}: its operands have {' and '.join(map(str, new))} channels; the "
            "convolutions behind them must keep the same number"
        )
    if operation.kind == "concat":
        return sum(new)
    if operation.kind == "slice":
        return len(range(*sliced(operation, present[0], new[0]), operation.step))
    if operation.kind == "reshape":
        whole, rest = divmod(new[0] * operation.channels, present[0])
        if rest or whole == 0:
            raise ValueError(
                f"{operation.layer}: {new[0]} channels cannot be reshaped as {present[0]} are, "
                f"to {operation.channels}; take a multiple of {present[0] // operation.channels}"
            )
        return whole
    return new[0]


def sliced(operation: ChannelOperation, present: int, new: int) -> tuple[int, int]:
    """Where a slice starts and stops once what it reads has `new` channels in place of `present`.

    Raises:
        ValueError: it stops before the last by steps, or takes no whole number of them.
    """
    if operation.step > 1:
        if operation.stop < present:
            raise ValueError(
                f"{operation.layer}: a slice that stops at channel {operation.stop} of "
                f"{present}; only one that reaches the last can follow"
            )
        return operation.start, new
    ends = [divmod(end * new, present) for end in (operation.start, min(operation.stop, present))]
    if any(rest for _, rest in ends):
        raise ValueError(
            f"{operation.layer}: a slice of channels {operation.start} to {operation.stop} of "
            f"{present} takes no whole number of {new}"
        )
    return ends[0][0], ends[1][0]
