"""What an app must feed a file and what it gets back, read from the file itself.

interface(Path("model.tflite"), "tflite").input.shape  # (1, 224, 224, 3)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Port:
    """A tensor or image that goes in or comes out.

    Attributes:
        name: in the file.
        shape: None stands for any number of images.
        dtype: of its elements, as numpy names it.
        kind: `image` where a platform's own type of image is given, 8-bit RGB; else a tensor.
        scale: of the grid of an integer tensor, real = scale * (integer - zero_point); None
            where integers are plain numbers, and for floats.
        zero_point: of that grid.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    kind: Literal["tensor", "image"] = "tensor"
    scale: float | None = None
    zero_point: int | None = None

    @property
    def layout(self) -> str:
        """NCHW or NHWC, of an image; empty for what has no four dimensions."""
        if len(self.shape) != 4:
            return ""
        return "NHWC" if self.shape[3] == 3 else "NCHW"

    @property
    def side(self) -> int:
        """Of a square image, in pixels."""
        return int(self.shape[2] or 0)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """The one input and the one output of a file."""

    input: Port
    output: Port


def interface(path: Path, form: str) -> Interface:
    """Read a file's interface.

    Args:
        path: of the file.
        form: onnx, tflite or coreml.

    Raises:
        ValueError: the file has not one input and one output.
    """
    return _READERS[form](path)


def _onnx(path: Path) -> Interface:
    import onnx

    def port(value: Any) -> Port:
        tensor = value.type.tensor_type
        return Port(
            name=value.name,
            shape=tuple(d.dim_value or None for d in tensor.shape.dim),
            dtype=onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
        )

    graph = onnx.load(path, load_external_data=False).graph
    (image,), (logits,) = graph.input, graph.output
    return Interface(input=port(image), output=port(logits))


def _tflite(path: Path) -> Interface:
    from ai_edge_litert.interpreter import Interpreter

    def port(details: dict[str, Any]) -> Port:
        scale, zero_point = details["quantization"]
        # The runtime says 0 where there is no grid; pixels are integers on a grid of ones.
        plain = scale == 0 or (scale, zero_point) == (1, 0)
        return Port(
            name=details["name"],
            shape=tuple(int(size) for size in details["shape"]),
            dtype=np.dtype(details["dtype"]).name,
            scale=None if plain else float(scale),
            zero_point=None if plain else int(zero_point),
        )

    interpreter = Interpreter(model_path=str(path))
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    return Interface(input=port(image), output=port(logits))


def _coreml(path: Path) -> Interface:
    from pipeline.formats import mil

    def port(feature: Any, shape: tuple[int, ...]) -> Port:
        if mil.input_kind(feature) == "image":
            size = feature.type.imageType
            return Port(
                name=feature.name,
                shape=(1, size.height, size.width, 3),
                dtype="uint8",
                kind="image",
            )
        array = feature.type.multiArrayType
        names = {number: name.lower() for name, number in array.ArrayDataType.items()}
        return Port(name=feature.name, shape=shape, dtype=names[array.dataType])

    spec = mil.specification(path)
    (image,), (logits,) = spec.description.input, spec.description.output
    given, made = (
        tuple(int(size) for size in feature.type.multiArrayType.shape)
        for feature in (image, logits)
    )
    return Interface(input=port(image, given), output=port(logits, made))


_READERS = {"onnx": _onnx, "tflite": _tflite, "coreml": _coreml}
