"""Which operations of a TFLite file XNNPACK leaves to LiteRT's own, slower kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SUMS = frozenset({"ADD", "SUB"})
LEAST_RATIO, MOST_RATIO = 2.0**-10, 2.0**8
"""Of the scale of a sum's input to that of the sum; XNNPACK takes from the first, below the other
(`CheckTensorsInputOutputScale` in LiteRT's delegate)."""


def outside(operations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The operations that no partition holds.

    Args:
        operations: of an interpreter whose delegate is applied: those of the file, and behind them
            one called DELEGATE for each partition.
    """
    parts = [one for one in operations if one["op_name"] == "DELEGATE"]
    made_by = {
        int(tensor): one
        for one in operations
        if one["op_name"] != "DELEGATE"
        for tensor in one["outputs"]
    }
    inside: set[int] = set()
    for part in parts:
        given = {int(tensor) for tensor in part["inputs"]}
        waiting = [int(tensor) for tensor in part["outputs"]]
        while waiting:
            tensor = waiting.pop()
            one = made_by.get(tensor)
            if tensor in given or one is None or int(one["index"]) in inside:
                continue
            inside.add(int(one["index"]))
            waiting += [int(read) for read in one["inputs"]]
    own = [one for one in operations if one["op_name"] != "DELEGATE"]
    return [one for one in own if int(one["index"]) not in inside]


def why(operation: Mapping[str, Any], scales: Mapping[int, float]) -> str:
    """Say what an operation that is left out is, and why where that can be told.

    Args:
        operation: as LiteRT describes it.
        scales: of tensors that have one, by number.
    """
    title = str(operation["op_name"])
    if operation["op_name"] in SUMS:
        made = scales.get(int(operation["outputs"][0]))
        for tensor in operation["inputs"]:
            ratio = scales[int(tensor)] / made if made and int(tensor) in scales else 1.0
            if not LEAST_RATIO <= ratio < MOST_RATIO:
                return (
                    f"{title}: the scale of an input is {ratio:.2g} of the sum's; XNNPACK takes "
                    f"{LEAST_RATIO:.2g} to {MOST_RATIO:g}"
                )
    return f"{title}: XNNPACK does not take it as it is"
