"""What a file answers where a Neural Engine takes one scale for another: a known fault, simulated.

The compiler of Neural Engines is reported to give a factor of a quantized product the scale of
another grid of that product (apple/coreai-torch, issue 112; seen with Core ML, too, on macOS 27
with coremltools 9.0). The reports fit one rule, a factor's integers times a wrong scale, and do not
say which scale it is in a graph of another form. So each is simulated here.

Golden images are chosen so that each of these moves an answer by more than may be, and what a Mac
answers wrongly is compared with them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.file import ReferenceRunnable
from pipeline.formats.coreml.package import Constant, Network, Operation

FAULTS: dict[str, dict[str, str]] = {
    "the first factor is given the second's scale": {"x": "y"},
    "the second factor is given the first's scale": {"y": "x"},
    "the first factor is given the product's scale": {"x": "product"},
    "the second factor is given the product's scale": {"y": "product"},
    "both factors are given the product's scale": {"x": "product", "y": "product"},
}
"""Whose scale each factor of a product is read with."""


def wrong_answers(path: Path, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What a file answers with each fault that can befall it, by the reference evaluator.

    Keys are of `FAULTS`.

    Args:
        path: of a package.
        images: (batch, channels, height, width), as for `set_input`.

    Returns:
        Answers (batch, ...); no fault of a file that has no product of the kind.
    """
    network = coreml_package.read(path)
    found: dict[str, NDArray[np.float32]] = {}
    for fault in FAULTS:
        changed = with_fault(network, fault)
        if changed is not network:
            runnable = ReferenceRunnable(path, changed)
            runnable.set_input(images)
            runnable.invoke()
            found[fault] = runnable.output()
    return found


def with_fault(network: Network, fault: str, *, only: str | None = None) -> Network:
    """A network whose products are computed with a fault; the same one where it has none of them.

    Of a product that is clipped before it is quantized no scale is taken, as was reported. Factors
    that are not read by `dequantize` are not befallen.

    Args:
        network: as read from a package.
        fault: of `FAULTS`.
        only: name of the one product that it befalls; None for all.
    """
    made_by = network.producers()
    read_by: dict[str, list[Operation]] = {}
    for op in network.operations:
        for given in op.inputs.values():
            for name in given if isinstance(given, tuple) else ():
                read_by.setdefault(name, []).append(op)
    operations: list[Operation] = []
    for op in network.operations:
        befallen = only is None or op.name == only
        factors = _wrong_factors(op, FAULTS[fault], made_by, read_by) if befallen else {}
        operations += factors.values()
        names = {argument: (made.outputs[0].name,) for argument, made in factors.items()}
        operations.append(replace(op, inputs={**op.inputs, **names}) if factors else op)
    if len(operations) == len(network.operations):
        return network
    return replace(network, operations=tuple(operations))


def _wrong_factors(
    op: Operation,
    taken: dict[str, str],
    made_by: dict[str, Operation],
    read_by: dict[str, list[Operation]],
) -> dict[str, Operation]:
    """What reads the factors of a product with wrong scales, by the product's argument."""
    if op.type != "mul":
        return {}
    scales: dict[str, Constant] = {}
    readers: dict[str, Operation] = {}
    for argument in ("x", "y"):
        given = op.inputs[argument]
        read = made_by.get(given[0]) if isinstance(given, tuple) else None
        if read is not None and read.type == "dequantize":
            readers[argument] = read
            scales[argument] = _scale(read, made_by)
    for reader in read_by.get(op.outputs[0].name, []):
        if reader.type == "quantize":
            scales["product"] = _scale(reader, made_by)
    return {
        argument: _read_with(readers[argument], scales[other], f"{op.name}_{argument}_wrong")
        for argument, other in taken.items()
        if argument in readers and other in scales
    }


def _scale(op: Operation, made_by: dict[str, Operation]) -> Constant:
    scale = op.constant("scale", made_by)
    assert scale is not None  # both operations must have one
    return scale


def _read_with(read: Operation, scale: Constant, name: str) -> Operation:
    """A `dequantize` with another scale, and a name of its own."""
    (value,) = read.outputs
    inputs = {**read.inputs, "scale": scale}
    return replace(read, name=name, inputs=inputs, outputs=(replace(value, name=name),))
