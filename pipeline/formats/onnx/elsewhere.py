"""ONNX files, ready for a runtime on another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pipeline.base.errors import following
from pipeline.formats.format import Tapped
from pipeline.formats.pixels import camera_pixels


def laid_out(images: NDArray[np.float32], *, pixels: bool) -> NDArray[Any]:
    """Images (batch, 3, side, side) as files take them: 8-bit and channels last where `pixels`."""
    return camera_pixels(images) if pixels else np.ascontiguousarray(images)


@following("an ONNX graph")
def fed(path: Path, images: NDArray[np.float32]) -> NDArray[Any]:
    """What ONNX Runtime is given for images (batch, 3, side, side)."""
    given = onnx.load(path).graph.input[0].type.tensor_type
    return laid_out(images, pixels=given.elem_type == onnx.TensorProto.UINT8)


@following("an ONNX graph")
def tapped(path: Path) -> Tapped:
    """A copy of a file that gives out its quantized tensors.

    ONNX Runtime fuses around them as before, since only integer tensors are asked for.
    """
    model = onnx.load(path)
    names = tuple(quantized_tensors(model))
    model.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names
    )
    return Tapped(content=model.SerializeToString(), names=names)


def numbers(values: NDArray[Any]) -> NDArray[np.int8]:
    """A tensor that a tapped file gives out, on the program's grid: uint8 - 128."""
    return (values.astype(np.int16) - 128).astype(np.int8)


def answers(values: NDArray[Any]) -> NDArray[Any]:
    """What a file gives out, as it is."""
    return values


def parts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """None: ONNX Runtime fuses operations that a cut would part."""
    return iter(())


def quantized_tensors(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Every quantized activation by name, with a node that says its grid.

    That is the QuantizeLinear that makes it. Pixels come from outside: for them it is the
    DequantizeLinear that reads them.
    """
    given, found = {model.graph.input[0].name}, {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found[node.output[0]] = node
        elif node.op_type == "Transpose" and node.input[0] in given:
            given.add(node.output[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] in given:
            found[node.input[0]] = node
    return found
