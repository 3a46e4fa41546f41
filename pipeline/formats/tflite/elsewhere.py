"""TFLite files, ready for a runtime on another machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import following
from pipeline.formats.format import Tapped
from pipeline.formats.pixels import camera_pixels
from pipeline.formats.tflite.flatbuffer import pack


def laid_out(images: NDArray[np.float32], *, pixels: bool) -> NDArray[Any]:
    """Images (batch, 3, side, side) as files take them: channels last, 8-bit where `pixels`."""
    return camera_pixels(images) if pixels else images.transpose(0, 2, 3, 1)


@following("a TFLite file")
def fed(path: Path, images: NDArray[np.float32]) -> NDArray[Any]:
    """What LiteRT is given for images (batch, 3, side, side)."""
    from ai_edge_litert import schema_py_generated as schema

    graph = _model(path.read_bytes()).subgraphs[0]
    pixels = graph.tensors[graph.inputs[0]].type == schema.TensorType.UINT8
    return np.ascontiguousarray(laid_out(images, pixels=pixels))


@following("a TFLite file")
def tapped(path: Path) -> Tapped:
    """A copy of a file that gives out its quantized tensors.

    The tensors become outputs: inside XNNPACK's partition no other tensor can be read.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _model(path.read_bytes())
    graph = model.subgraphs[0]
    outside = {int(i) for i in (*graph.inputs, *graph.outputs)}
    taps = {
        graph.tensors[index].name.decode(): int(index)
        for op in graph.operators
        for index in op.outputs
        if int(index) not in outside and graph.tensors[index].type == schema.TensorType.INT8
    }
    graph.outputs = [*graph.outputs, *taps.values()]
    model.signatureDefs = []
    return Tapped(content=pack(model), names=tuple(taps))


def numbers(values: NDArray[Any]) -> NDArray[np.int8]:
    """A tensor that a tapped file gives out, height and width last.

    before: (batch, height, width, channels), within a channel shuffle two axes of channels
    after:  (batch, channels, height, width), within a channel shuffle two axes of channels
    """
    behind = range(3, values.ndim)  # none of a tensor that is no image
    return np.ascontiguousarray(np.moveaxis(values, behind, range(1, 1 + len(behind))))


def answers(values: NDArray[Any]) -> NDArray[Any]:
    """What a file gives out, maps with height and width last.

    before: (batch, height, width, channels)
    after:  (batch, channels, height, width)
    """
    return np.moveaxis(values, 3, 1) if values.ndim == 4 else values


def parts(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Every operation of a file as a file of its own, with the name of the tensor it makes."""
    from pipeline.formats.tflite.layers import parts

    return parts(content)


def _model(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(content, 0)
