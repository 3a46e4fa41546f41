"""Zeros around an image, as a part of the convolutions that read it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from pipeline.formats import as_onnx


def pad_in_convolutions(model: onnx.ModelProto) -> None:
    """Make a padding with zeros the convolution's own, in place.

    torch pads both ends of an axis alike; a network of TensorFlow's has uneven ends, which are an
    operation of their own in a program. ONNX knows uneven ends. The padded image lies on the grid
    of the image, whose zero is exact, so that no number changes.

    before: x -> DequantizeLinear -> Pad(0) -> QuantizeLinear -> DequantizeLinear -> Conv
    after:  x -> DequantizeLinear -> Conv(pads)
    """
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    for node in model.graph.node:
        if node.op_type == "Conv":
            for pad in _pads_before(node, made_by, values):
                _take_in(node, values[pad.input[1]])
                node.input[0] = pad.input[0]
    _drop_unread(model)


def _pads_before(
    conv: onnx.NodeProto, made_by: dict[str, onnx.NodeProto], values: dict[str, as_onnx.Array]
) -> Iterator[onnx.NodeProto]:
    """The padding that a convolution reads, through a rounding that changes nothing."""
    found = made_by.get(conv.input[0])
    grids: list[list[object]] = []
    while found is not None and found.op_type in ("DequantizeLinear", "QuantizeLinear"):
        if found.op_type == "DequantizeLinear" and grids:
            return  # past the padding: another layer's
        grids.append([values[name].tolist() for name in found.input[1:]])
        found = made_by.get(found.input[0])
    if found is None or found.op_type != "Pad" or not _of_zeros(found, values):
        return
    if grids:
        source = made_by.get(found.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            return
        grids.append([values[name].tolist() for name in source.input[1:]])
        if any(grid != grids[0] for grid in grids):
            return
    yield found


def _of_zeros(pad: onnx.NodeProto, values: dict[str, as_onnx.Array]) -> bool:
    """Whether an operation adds zeros to height and width alone, and takes nothing away."""
    around = values.get(pad.input[1])
    number = values.get(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else np.zeros(())
    if around is None or number is None or len(around) != 8 or float(number) != 0:
        return False
    return not any(around[[0, 1, 4, 5]]) and bool((around >= 0).all())


def _take_in(conv: onnx.NodeProto, around: as_onnx.Array) -> None:
    """Add ends (of eight, two axes before height and width) to those a convolution has."""
    (pads,) = (given for given in conv.attribute if given.name == "pads")
    added = around[[2, 3, 6, 7]].tolist()
    pads.ints[:] = [own + more for own, more in zip(pads.ints, added, strict=True)]


def _drop_unread(model: onnx.ModelProto) -> None:
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
