"""Our translation of ONNX's Resize to TensorFlow."""

from __future__ import annotations

from typing import Any

from pipeline.formats.tflite.nodes import record, refused


def resize(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate a Resize to larger images, and one that repeats pixels by moving numbers alone.

    XNNPACK has bilinear resizing of integers, rounded to the nearest, with weights of 11 bits. It
    does not take RESIZE_NEAREST_NEIGHBOR, but joins and reshapes; of one pixel bilinear resizing
    gives that pixel.

    before: (batch, channels, h, w) -> Resize(twice) -> (batch, channels, 2 h, 2 w)
    after:  (batch, h, w, c) -> Concat with itself -> Reshape(batch, h, 2 w c)
            -> Concat with itself -> Reshape(batch, 2 h, 2 w, c)

    Raises:
        InputError: any other.
    """
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    factors = graph_node.inputs[2].values.reshape(-1).tolist()
    mode = graph_node.attrs.get("mode")
    places = graph_node.attrs.get("coordinate_transformation_mode", "half_pixel")
    known = {("nearest", "asymmetric"), ("linear", "half_pixel")}
    if (mode, places) not in known or factors[:2] != [1, 1] or any(f != round(f) for f in factors):
        raise refused(graph_node, f"mode {mode}, {places}, factors {factors}; they must be whole")
    rows, columns = (int(factor) for factor in factors[2:])
    height, width, channels = (int(size) for size in tensor.shape[1:])
    if mode == "linear" or (height, width) == (1, 1):
        made = tf.image.resize(tensor, [height * rows, width * columns])
    else:
        wide = _times(tf.reshape(tensor, [1, height, width, channels]), columns)
        high = _times(tf.reshape(wide, [1, height, 1, columns * width * channels]), rows)
        made = tf.reshape(high, [1, height * rows, width * columns, channels])
    record(tf_layers_dict, graph_node, made)


def _times(tensor: Any, count: int) -> Any:
    """The last axis so many times side by side; XNNPACK joins four tensors at once."""
    import tensorflow as tf

    whole, left = tensor, count
    for parts in (4, 3, 2):
        while left % parts == 0 and left > 1:
            whole = tf.concat([whole] * parts, -1)
            left //= parts
    return whole if left == 1 else tf.concat([whole] * left, -1)
