"""Our translation of max pools to TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.formats.tflite.nodes import record, refused


def max_pool(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate MaxPool, with the lowest number that its input can hold around it.

    Past a ReLU that is 0. Other inputs need PADV2, which XNNPACK does not take.

    before: x -> MaxPool(pads) -> y
    after:  x -> Pad (PadV2 where the lowest number is not 0) -> MaxPool(VALID) -> y
    """
    import tensorflow as tf

    source = graph_node.inputs[0]
    tensor = tf_layers_dict[source.name]["tf_node"]
    kernel, strides = graph_node.attrs["kernel_shape"], graph_node.attrs["strides"]
    if set(graph_node.attrs.get("dilations", [1])) != {1}:
        raise refused(graph_node, "a dilation; a max pool may have none")
    top, left, bottom, right = graph_node.attrs["pads"]
    if graph_node.attrs.get("ceil_mode", 0):
        height, width = (int(size) for size in tensor.shape[1:3])
        bottom += _for_whole_windows(height, kernel[0], strides[0], top, bottom)
        right += _for_whole_windows(width, kernel[1], strides[1], left, right)
    pads, lowest = [[0, 0], [top, bottom], [left, right], [0, 0]], _lowest(source)
    if lowest == 0:
        tensor = tf.pad(tensor, pads)
    elif any(map(any, pads)):
        tensor = tf.pad(tensor, pads, constant_values=lowest)
    record(tf_layers_dict, graph_node, tf.nn.max_pool2d(tensor, kernel, strides, "VALID"))


def _for_whole_windows(size: int, extent: int, stride: int, before: int, after: int) -> int:
    """What `ceil_mode` adds to an axis so that its last window is whole."""
    left = (size + before + after - extent) % stride
    begins = size + before + after - extent - left + stride
    # A window must begin in the image or in the padding before it.
    return stride - left if left and begins < size + before else 0


def _lowest(tensor: Any) -> float:
    """The lowest number that a tensor can hold, as far as the operation before it says."""
    (node,) = tensor.inputs or [None]
    if node is not None and node.op == "DequantizeLinear":
        (node,) = node.inputs[0].inputs or [None]
    if node is not None and node.op == "QuantizeLinear":
        scale, zero_point = (node.inputs[place].values for place in (1, 2))
        return (-128 - int(zero_point)) * float(scale)
    if node is not None and node.op in {"Relu", "Sigmoid", "Softmax"}:
        return 0.0
    return float(np.finfo(np.float32).min)
