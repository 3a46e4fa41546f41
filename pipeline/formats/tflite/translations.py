"""Our translations of ONNX operations to TensorFlow, in place of onnx2tf's.

onnx2tf drops QuantizeLinear on purpose, and guards its translations of layout-free operations
with transposes. Every 4-D tensor of ours is NCHW in ONNX and NHWC in TensorFlow, so each of these
needs none.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def _record(tf_layers_dict: dict[str, Any], graph_node: Any, tensor: Any) -> None:
    """Tell onnx2tf what a node became. Every 4-D tensor of ours is NHWC on the TensorFlow side."""
    output = graph_node.outputs[0]
    tf_layers_dict[output.name] = {
        "optype": graph_node.op,
        "shape": output.shape,
        "dtype": np.float32,
        "is_dequantized": True,
        "nhwc": len(tensor.shape) == 4,
        "tf_node": tensor,
        "tf_node_info": {},
    }


def _fake_quant(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> Any:
    """Translate QuantizeLinear to a rounding with the trained range; returns its tensor."""
    import tensorflow as tf

    scale = float(graph_node.inputs[1].values)
    zero_point = int(graph_node.inputs[2].values)
    tensor = tf.quantization.fake_quant_with_min_max_args(
        tf_layers_dict[graph_node.inputs[0].name]["tf_node"],
        min=(-128 - zero_point) * scale,
        max=(127 - zero_point) * scale,
    )
    _record(tf_layers_dict, graph_node, tensor)
    return tensor


def _max_pool(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate MaxPool with zero padding, exact because every input of ours is past a ReLU.

    The general form pads with minus infinity (PADV2), which XNNPACK does not take.
    """
    import tensorflow as tf

    top, left, bottom, right = graph_node.attrs["pads"]
    padded = tf.pad(
        tf_layers_dict[graph_node.inputs[0].name]["tf_node"],
        [[0, 0], [top, bottom], [left, right], [0, 0]],
    )
    kernel, strides = graph_node.attrs["kernel_shape"], graph_node.attrs["strides"]
    tensor = tf.nn.max_pool2d(padded, kernel, strides, "VALID")
    _record(tf_layers_dict, graph_node, tensor)


def _elementwise(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Add and Mul of two NHWC tensors as they stand.

    onnx2tf compares the result's shape with the ONNX (NCHW) one and transposes where they differ,
    which here is everywhere.
    """
    import tensorflow as tf

    left, right = (tf_layers_dict[i.name]["tf_node"] for i in graph_node.inputs)
    operation = {"Add": tf.math.add, "Mul": tf.math.multiply}[graph_node.op]
    _record(tf_layers_dict, graph_node, operation(left, right))


def _reshape(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate a Reshape to or from (batch, channels, 1, 1), which moves nothing in any layout.

    Raises:
        NotImplementedError: a 4-D side is larger than one pixel.
    """
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    shape = [int(size) for size in graph_node.inputs[1].values]
    pixels = [*(tensor.shape[1:3] if len(tensor.shape) == 4 else []), *shape[2:4]]
    if len(shape) == 3:
        pixels = pixels[: len(pixels) - 1]
    if any(size != 1 for size in pixels):
        raise NotImplementedError(
            f"{graph_node.name}: reshape of {tuple(tensor.shape)} to {tuple(shape)} changes the "
            "layout; only (batch, channels, 1, 1) can be reshaped"
        )
    target = [1, 1, 1, shape[1]] if len(shape) == 4 else [1, *shape[1:]]
    _record(tf_layers_dict, graph_node, tf.reshape(tensor, target))


def _softmax(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Softmax over the last axis of a tensor that is not an image."""
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    assert len(tensor.shape) == 3
    assert graph_node.attrs.get("axis", -1) in {-1, 2}
    _record(tf_layers_dict, graph_node, tf.nn.softmax(tensor))


def _slice(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate a Slice of channels, with or without a step."""
    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    start, end, axis, step = (int(i.values.item()) for i in graph_node.inputs[1:5])
    assert len(tensor.shape) == 4
    assert axis == 1
    channels = slice(start, min(end, int(tensor.shape[3])), step)
    _record(tf_layers_dict, graph_node, tensor[:, :, :, channels])


_TRANSLATIONS = {
    "MaxPool": _max_pool,
    "Add": _elementwise,
    "Mul": _elementwise,
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Slice": _slice,
}
"""Our translations in place of onnx2tf's, besides that of QuantizeLinear."""


@contextmanager
def own_translations() -> Iterator[dict[str, str]]:
    """Within it, onnx2tf uses our translations.

    Yields the name of the program's layer by that of the Keras layer which rounds it; it fills
    while onnx2tf converts.
    """
    layers: dict[str, str] = {}

    def quantize(*, graph_node: Any, **arguments: Any) -> None:
        tensor = _fake_quant(graph_node=graph_node, **arguments)
        layers[tensor.node.layer.name] = graph_node.outputs[0].name

    translations = {"QuantizeLinear": quantize, **_TRANSLATIONS}
    modules = {op: importlib.import_module(f"onnx2tf.ops.{op}") for op in translations}
    originals = {op: module.make_node for op, module in modules.items()}
    for op, module in modules.items():
        module.make_node = translations[op]  # type: ignore[attr-defined]
    try:
        yield layers
    finally:
        for op, module in modules.items():
            module.make_node = originals[op]  # type: ignore[attr-defined]
