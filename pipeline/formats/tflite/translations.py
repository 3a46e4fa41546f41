"""Our translations of ONNX operations to TensorFlow, in place of onnx2tf's.

onnx2tf drops QuantizeLinear, and guards its translations of layout-free operations with transposes.
Every 4-D tensor of ours is NCHW in ONNX and NHWC in TensorFlow, so these need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.base.errors import InputError
from pipeline.formats.tflite.dilated import dilated
from pipeline.formats.tflite.nodes import is_rounded, operand, record, refused
from pipeline.formats.tflite.pooling import max_pool
from pipeline.formats.tflite.resizing import resize


def _fake_quant(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> Any:
    """Translate QuantizeLinear to a rounding with the trained range; returns its tensor.

    before: x -> QuantizeLinear(scale, zero point) -> DequantizeLinear -> y
    after:  x -> FakeQuantWithMinMaxArgs((-128 - zero point) scale, (127 - zero point) scale) -> y
    """
    import tensorflow as tf

    scale = float(graph_node.inputs[1].values)
    zero_point = int(graph_node.inputs[2].values)
    tensor = tf.quantization.fake_quant_with_min_max_args(
        tf_layers_dict[graph_node.inputs[0].name]["tf_node"],
        min=(-128 - zero_point) * scale,
        max=(127 - zero_point) * scale,
    )
    record(tf_layers_dict, graph_node, tensor)
    return tensor


def _elementwise(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Add, Mul and their like of two NHWC tensors as they stand.

    onnx2tf compares the result's shape with the ONNX (NCHW) one and transposes where they differ,
    which here is everywhere. A constant operand is that of a layer which stays in float.

    Raises:
        InputError: operands have different numbers of axes, which would meet otherwise with
            channels last.
    """
    import tensorflow as tf

    constant = any(i.name not in tf_layers_dict for i in graph_node.inputs)
    if constant and any(is_rounded(i) for i in graph_node.inputs):
        raise refused(graph_node, "a constant operand beside int8 numbers; both must be computed")
    left, right = (operand(i, tf_layers_dict) for i in graph_node.inputs)
    if not constant and len(left.shape) != len(right.shape):
        raise refused(
            graph_node,
            f"operands of {len(left.shape)} and {len(right.shape)} axes; they must have as many",
        )
    operation = {
        "Add": tf.math.add,
        "Div": tf.math.divide,
        "Max": tf.math.maximum,
        "Min": tf.math.minimum,
        "Mul": tf.math.multiply,
        "Pow": tf.math.pow,
        "Sub": tf.math.subtract,
    }[graph_node.op]
    record(tf_layers_dict, graph_node, operation(left, right))


def _reshape(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate a Reshape that moves nothing with channels last either.

    That is one to or from (batch, channels, 1, 1), and one that divides the channels of an image,
    (batch, groups, channels, height, width), or joins them again:

    before: (batch, g * c, h, w) -> Reshape -> (batch, g, c, h, w)
    after:  (batch, h, w, g * c) -> Reshape -> (batch, h, w, g, c)

    Raises:
        InputError: any other.
    """
    import tensorflow as tf

    source = graph_node.inputs[0]
    tensor = tf_layers_dict[source.name]["tf_node"]
    shape = [int(size) for size in graph_node.inputs[1].values]
    before, after = [1, *map(int, source.shape[1:])], [1, *shape[1:]]
    if {len(before), len(after)} == {4, 5} and before[-2:] == after[-2:]:
        target = [1, *after[-2:], *after[1:-2]]
    elif before[2:4] in ([], [1, 1], [1]) or (len(before) == 3 and len(after) == 4):
        if len(after) == 4 and after[2:] != [1, 1]:
            raise _changes_layout(graph_node, tensor, shape)
        target = [1, 1, 1, after[1]] if len(after) == 4 else after
    elif len(before) == 4 and len(after) == 2 and before[1] == 1:
        target = after
    else:
        raise _changes_layout(graph_node, tensor, shape)
    record(tf_layers_dict, graph_node, tf.reshape(tensor, target))


def _changes_layout(graph_node: Any, tensor: Any, shape: list[int]) -> InputError:
    return refused(
        graph_node,
        f"a reshape of {tuple(tensor.shape)} to {tuple(shape)}, which changes the layout; only "
        "(batch, channels, 1, 1) can be reshaped, and channels divided into groups",
    )


def _transpose(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate the Transpose of a channel shuffle.

    before: (batch, g, c, h, w) -> Transpose(0, 2, 1, 3, 4)
    after:  (batch, h, w, g, c) -> Transpose(0, 1, 2, 4, 3)

    Raises:
        InputError: any other.
    """
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    order = [int(axis) for axis in graph_node.attrs["perm"]]
    if order != [0, 2, 1, 3, 4]:
        raise refused(graph_node, f"a permutation {order}; it may be that of a channel shuffle")
    record(tf_layers_dict, graph_node, tf.transpose(tensor, [0, 1, 2, 4, 3]))


_AXES = {1: 3, 2: 1, 3: 2}
"""Where an axis of an image lies with channels last."""


def _split(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Split of an image along one axis into slices.

    Raises:
        InputError: of the batch, or of another tensor.
    """
    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    axis = int(graph_node.attrs.get("axis", 0))
    if len(tensor.shape) != 4 or axis % 4 not in _AXES:
        raise refused(graph_node, f"axis {axis} of a tensor of {len(tensor.shape)} axes")
    begin = 0
    for place, output in enumerate(graph_node.outputs):
        part = [slice(None)] * 4
        part[_AXES[axis % 4]] = slice(begin, begin + int(output.shape[axis]))
        begin += int(output.shape[axis])
        record(tf_layers_dict, graph_node, tensor[tuple(part)], place)


def _concat(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Concat of images, along any axis but the batch.

    Raises:
        InputError: of other tensors.
    """
    import tensorflow as tf

    tensors = [tf_layers_dict[i.name]["tf_node"] for i in graph_node.inputs]
    ranks, axis = {len(t.shape) for t in tensors}, int(graph_node.attrs["axis"])
    if ranks != {4} or axis % 4 not in _AXES:
        raise refused(graph_node, f"axis {axis} of tensors of {sorted(ranks)} axes")
    record(tf_layers_dict, graph_node, tf.concat(tensors, _AXES[axis % 4]))


def _pad(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Pad of an image with zeros.

    Raises:
        InputError: of another number, or of other axes than height and width.
    """
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    pads = [int(size) for size in graph_node.inputs[1].values]
    given = graph_node.inputs[2:3]
    values = [getattr(i, "values", None) for i in given if i.name]
    if (
        any(v is None or float(v) != 0 for v in values)
        or len(pads) != 8
        or any(pads[i] for i in (0, 1, 4, 5))
    ):
        raise refused(graph_node, f"pads {pads}; it may pad height and width with 0")
    around = [[0, 0], [pads[2], pads[6]], [pads[3], pads[7]], [0, 0]]
    record(tf_layers_dict, graph_node, tf.pad(tensor, around))


def _leaky_relu(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate LeakyRelu."""
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    slope = float(graph_node.attrs.get("alpha", 0.01))
    record(tf_layers_dict, graph_node, tf.nn.leaky_relu(tensor, slope))


def _clip(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Clip between two constants, the forms that TFLite has as one operation first."""
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    low, high = (float(i.values) for i in graph_node.inputs[1:3])
    if (low, high) == (0.0, 6.0):
        made = tf.nn.relu6(tensor)
    else:
        made = tf.minimum(tf.maximum(tensor, low), high)
    record(tf_layers_dict, graph_node, made)


def _each(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate what works number by number; Floor is the mark before a float layer."""
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    operation = {
        "Abs": tf.math.abs,
        "Cos": tf.math.cos,
        "Exp": tf.math.exp,
        "Floor": tf.math.floor,
        "Log": tf.math.log,
        "Reciprocal": lambda x: 1.0 / x,
        "Sin": tf.math.sin,
        "Sqrt": tf.math.sqrt,
    }[graph_node.op]
    record(tf_layers_dict, graph_node, operation(tensor))


def _softmax(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate Softmax over the channels of an image, or the last axis of another tensor.

    Raises:
        InputError: over another axis.
    """
    import tensorflow as tf

    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    axis = graph_node.attrs.get("axis", -1)
    over_channels = len(tensor.shape) == 4 and axis in {1, -3}
    if not over_channels and (len(tensor.shape) != 3 or axis not in {-1, 2}):
        raise refused(
            graph_node,
            f"a softmax over axis {axis} of {len(tensor.shape)}; it may be over the last of 3, or "
            "over the channels of an image",
        )
    record(tf_layers_dict, graph_node, tf.nn.softmax(tensor))


def _slice(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate a Slice of an image along one axis, with or without a step.

    Raises:
        InputError: of the batch, or of several axes.
    """
    tensor = tf_layers_dict[graph_node.inputs[0].name]["tf_node"]
    starts, ends, axes = (i.values.reshape(-1).tolist() for i in graph_node.inputs[1:4])
    steps = graph_node.inputs[4].values.reshape(-1).tolist() if graph_node.inputs[4:] else [1]
    if len(tensor.shape) != 4 or len(axes) != 1 or axes[0] not in _AXES:
        raise refused(
            graph_node,
            f"a slice of axes {axes} of {len(tensor.shape)}; it may be of channels, height or "
            "width, axis 1, 2 or 3 of 4",
        )
    axis = _AXES[axes[0]]
    part = [slice(None)] * 4
    part[axis] = slice(starts[0], min(ends[0], int(tensor.shape[axis])), steps[0])
    record(tf_layers_dict, graph_node, tensor[tuple(part)])


def _ours() -> dict[Any, Callable[..., None]]:
    """Our translations, by onnx2tf's module of each."""
    from onnx2tf.ops import (
        Abs,
        Add,
        Clip,
        Concat,
        Cos,
        Div,
        Exp,
        Floor,
        LeakyRelu,
        Log,
        Max,
        MaxPool,
        Min,
        Mul,
        Pad,
        Pow,
        Reciprocal,
        Reshape,
        Resize,
        Sin,
        Slice,
        Softmax,
        Split,
        Sqrt,
        Sub,
        Transpose,
    )

    return {
        **dict.fromkeys((Abs, Cos, Exp, Floor, Log, Reciprocal, Sin, Sqrt), _each),
        **dict.fromkeys((Add, Div, Max, Min, Mul, Pow, Sub), _elementwise),
        MaxPool: max_pool,
        Reshape: _reshape,
        Resize: resize,
        Transpose: _transpose,
        Softmax: _softmax,
        Slice: _slice,
        Split: _split,
        Concat: _concat,
        Pad: _pad,
        LeakyRelu: _leaky_relu,
        Clip: _clip,
    }


@contextmanager
def own_translations(convolved: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Within it, onnx2tf uses our translations.

    Yields the name of the program's layer by that of the Keras layer which rounds it; it fills
    while onnx2tf converts.

    Args:
        convolved: gets likewise what each convolution gives, its ONNX name by the Keras layer.
    """
    layers: dict[str, str] = {}

    def quantize(*, graph_node: Any, **arguments: Any) -> None:
        tensor = _fake_quant(graph_node=graph_node, **arguments)
        layers[tensor.node.layer.name] = graph_node.outputs[0].name

    from onnx2tf.ops import Conv, QuantizeLinear

    theirs = Conv.make_node

    def convolve(*, graph_node: Any, tf_layers_dict: dict[str, Any], **arguments: Any) -> None:
        if not dilated(graph_node, tf_layers_dict):
            theirs(graph_node=graph_node, tf_layers_dict=tf_layers_dict, **arguments)
        output = graph_node.outputs[0].name
        if convolved is not None:
            convolved[tf_layers_dict[output]["tf_node"].node.layer.name] = output

    translations = {**_ours(), QuantizeLinear: quantize, Conv: convolve}
    originals = {module: module.make_node for module in translations}
    for module, translation in translations.items():
        module.make_node = translation
    try:
        yield layers
    finally:
        for module, original in originals.items():
            module.make_node = original
