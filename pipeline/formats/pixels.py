"""Camera pixels: what a file with normalisation inside is fed, whatever its format."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper

from pipeline.compress.quantization import grid

quantized = torch.ops.quantized_decomposed

TOLERANCE = 1e-3
"""Dividing a pixel by 255 and by 1/255 again, as datasets do, misses it by up to 2e-5."""


def camera_pixels(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Pixel values (batch, 3, side, side) as the images (batch, side, side, 3) of a camera.

    Raises:
        ValueError: a value is no pixel value, such as one that is normalised.
    """
    rounded = np.rint(images).clip(0, 255)
    # This way round, since NaN compares false with everything.
    wrong = ~(np.abs(images - rounded) <= TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"images: got the value {images[wrong][0]:g}; this file takes pixels, whole numbers "
            "0 to 255; feed the dataset of pipeline.data.pixel_values, not a normalised one"
        )
    return np.ascontiguousarray(rounded.astype(np.uint8).transpose(0, 2, 3, 1))


def refuse_learned_input(program: torch.export.ExportedProgram) -> None:
    """Stop where a quantized program's input is not the grid of pixels.

    Raises:
        ValueError: the file would read pixels on another grid, and answer wrongly.
    """
    for node in program.graph.nodes:
        if node.target is not quantized.quantize_per_tensor.default:
            continue
        scale, zero_point = node.args[1:3]
        pixels = (scale, zero_point) == (grid.PIXEL_SCALE, grid.PIXEL_ZERO_POINT)
        if node.args[0].op == "placeholder" and not pixels:
            raise ValueError(
                f"program: its input has scale {scale:g} and zero point {zero_point}; a file of "
                f"pixels needs {grid.PIXEL_SCALE:g} and {grid.PIXEL_ZERO_POINT}; make the program "
                "from a deploy form with normalization"
            )


def take_pixels(model: onnx.ModelProto) -> None:
    """Make an ONNX input uint8 (batch, side, side, 3), as cameras and decoders give it, in place.

    On the grid of scale 1 and zero point 0 a uint8 pixel is the quantized tensor itself, so in a
    quantized file nothing is left of the first QuantizeLinear; a float file casts.

    before: image float32 NCHW -> QuantizeLinear -> DequantizeLinear (float: image -> Conv)
    after:  image uint8 NHWC -> Transpose -> DequantizeLinear (float: Transpose -> Cast -> Conv)
    """
    graph = model.graph
    image = graph.input[0]
    batch, channels, height, width = image.type.tensor_type.shape.dim
    shape = [batch.dim_param or batch.dim_value, height.dim_value, width.dim_value]
    (reader,) = (node for node in graph.node if image.name in node.input)
    if reader.op_type == "QuantizeLinear":
        graph.node.remove(reader)
        planes, entry = reader.output[0], []
    else:
        planes, values = f"{image.name}.planes", f"{image.name}.float"
        reader.input[list(reader.input).index(image.name)] = values
        entry = [helper.make_node("Cast", [planes], [values], to=onnx.TensorProto.FLOAT)]
    entry.insert(0, helper.make_node("Transpose", [image.name], [planes], perm=[0, 3, 1, 2]))
    for node in reversed(entry):
        graph.node.insert(0, node)
    image.CopyFrom(
        helper.make_tensor_value_info(
            image.name, onnx.TensorProto.UINT8, [*shape, channels.dim_value]
        )
    )
