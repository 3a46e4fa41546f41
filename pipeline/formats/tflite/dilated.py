"""Our translation of convolutions with a dilation to TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.formats.tflite.nodes import record


def dilated(graph_node: Any, tf_layers_dict: dict[str, Any]) -> bool:
    """Translate a Conv with a dilation that keeps the size of images; False for any other.

    What onnx2tf calls makes batches of an image's places first, which the converter takes back
    where it finds one convolution between: not where several read the same batches, nor where a
    depthwise one is wider than the image. SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND would be left,
    which XNNPACK does not take.

    before: x -> Conv(dilations, pads) -> y
    after:  x -> Conv2D(dilations, SAME) -> Add(bias) -> y
            or DepthwiseConv2dNative, where every channel is a group
    """
    import tensorflow as tf

    weight, attributes = graph_node.inputs[1].values, graph_node.attrs
    kernel, spread = list(weight.shape[2:]), list(attributes.get("dilations", [1, 1]))
    around = [d * (size - 1) // 2 for d, size in zip(spread, kernel, strict=True)]
    groups = attributes.get("group", 1)
    depthwise = groups == weight.shape[0] > weight.shape[1] == 1
    if (
        not (depthwise or groups == 1)
        or spread == [1, 1]
        or list(attributes.get("strides", [1, 1])) != [1, 1]
        or list(attributes.get("pads", [0] * 4)) != [*around, *around]
        or any(size % 2 == 0 for size in kernel)
    ):
        return False
    convolve = tf.compat.v1.nn.depthwise_conv2d_native if depthwise else tf.nn.conv2d
    made = convolve(
        tf_layers_dict[graph_node.inputs[0].name]["tf_node"],
        np.ascontiguousarray(weight.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))),
        strides=[1, 1, 1, 1],
        padding="SAME",
        dilations=[1, *spread, 1],
    )
    if len(graph_node.inputs) > 2:
        made = tf.math.add(made, graph_node.inputs[2].values)
    record(tf_layers_dict, graph_node, made)
    return True
