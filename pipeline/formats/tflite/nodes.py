"""What our translations read of an ONNX node, and what they tell onnx2tf that it became."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError


def record(tf_layers_dict: dict[str, Any], graph_node: Any, tensor: Any, place: int = 0) -> None:
    """Tell onnx2tf what a node became. Every 4-D tensor of ours is NHWC on the TensorFlow side."""
    output = graph_node.outputs[place]
    tf_layers_dict[output.name] = {
        "optype": graph_node.op,
        "shape": output.shape,
        "dtype": np.float32,
        "is_dequantized": True,
        "nhwc": len(tensor.shape) == 4,
        "tf_node": tensor,
        "tf_node_info": {},
    }


def refused(graph_node: Any, what: str) -> InputError:
    """The error of a node that cannot be written, in a line."""
    return InputError(f"{graph_node.op} {graph_node.name}: cannot be written to TFLite with {what}")


def is_rounded(tensor: Any) -> bool:
    """Whether what a node reads are numbers of an int8 layer."""
    return any(node.op == "DequantizeLinear" for node in getattr(tensor, "inputs", ()))


def operand(given: Any, tf_layers_dict: Mapping[str, Any]) -> Any:
    """What an ONNX node reads: a tensor of TensorFlow, or a constant with its channels last.

    before: constant (channels, height, width), axes in front left out where they are 1
    after:  constant (height, width, channels)
    """
    if given.name in tf_layers_dict:
        return tf_layers_dict[given.name]["tf_node"]
    values: NDArray[Any] = np.asarray(given.values, np.float32)
    if values.ndim == 0:
        return values
    values = values.reshape(*[1] * (3 - values.ndim), *values.shape)
    return np.moveaxis(values, -3, -1)
