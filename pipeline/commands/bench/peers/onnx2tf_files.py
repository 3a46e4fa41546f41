"""TFLite files as onnx2tf makes them, float and int8 (`-oiqt`), in less time.

By itself onnx2tf compares layouts on sample images, stores the network for Keras and writes seven
TFLite files, four of which it calibrates one after the other. Here it stops at the network in
memory, and TensorFlow's converter is given the settings that onnx2tf gives it for the one file
that is wanted. That file holds the same operations on the same numbers
(tests/commands/test_peers.py compares them).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.tflite.onnx2tf_folder import scratch_directory


def write_float(source: Path, path: Path) -> None:
    """Write `path` as onnx2tf writes its `_float32.tflite`.

    Args:
        source: a float ONNX file with input `image`.
        path: of the file, which takes channels last.
    """
    import tensorflow as tf

    converter = _converter(source, int8=False)
    operations = tf.lite.OpsSet
    converter.target_spec.supported_ops = [operations.TFLITE_BUILTINS, operations.SELECT_TF_OPS]
    path.write_bytes(converter.convert())


def write_int8(source: Path, images: NDArray[np.float32], path: Path) -> None:
    """Write `path` as onnx2tf writes its `_integer_quant.tflite`, float outside and int8 inside.

    Its `-cind` takes images channels last with a mean and a standard deviation to apply. What
    comes of 0 and 1 is the images as they are.

    Args:
        source: a float ONNX file with input `image`.
        images: float32 (N, 3, S, S), as the network takes them.
        path: of the file, which takes channels last.
    """
    import tensorflow as tf

    def calibration() -> Iterator[list[NDArray[np.float32]]]:
        for image in images:
            yield [np.ascontiguousarray(image.transpose(1, 2, 0)[None])]

    converter = _converter(source, int8=True)
    operations = tf.lite.OpsSet
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [
        operations.TFLITE_BUILTINS_INT8,
        operations.SELECT_TF_OPS,
    ]
    converter.representative_dataset = calibration
    path.write_bytes(converter.convert())


def _converter(source: Path, *, int8: bool) -> Any:
    """TensorFlow's converter, holding onnx2tf's translation of an ONNX file.

    Args:
        source: the ONNX file.
        int8: it will be quantized. onnx2tf then pads for max pooling with 0 and not with the
            smallest number there is, which no int8 grid could hold beside others.
    """
    import onnx2tf
    import tensorflow as tf

    with scratch_directory():
        # A copy, since onnx2tf simplifies the file in place.
        shutil.copy(source, "model.onnx")
        network = onnx2tf.convert(
            input_onnx_file_path="model.onnx",
            output_folder_path="model",
            output_integer_quantized_tflite=int8,
            disable_strict_mode=True,
            disable_model_save=True,
            non_verbose=True,
        )
    taken = [tf.TensorSpec(i.shape, i.dtype, i.name) for i in network.inputs]
    function = tf.function(lambda *images: network(images), input_signature=taken)
    traced = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], network)
    converter.unfold_batchmatmul = False
    return converter
