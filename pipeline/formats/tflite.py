"""TFLite files that keep the trained scales, run by LiteRT with XNNPACK.

onnx2tf drops QuantizeLinear on purpose and calibrates anew. Here its translation of that one
operation is replaced by TensorFlow's fake quantization with the trained range, and weights arrive
as float constants that lie on their int8 grid; TFLiteConverter then finds the same scales again.
Because they are float16 numbers, every product on the way is exact in float32.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pipeline.formats import qdq
from pipeline.formats.facts import FileFacts, Grid, conv_macs

RUNTIME = "litert"

_SAMPLE_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"
"""onnx2tf downloads this file unless it lies in the working directory."""


def write(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write `program` (quantized or float) to the TFLite file `path`, batch 1, NHWC."""
    model = qdq.to_onnx(program)
    fold_weights(model)
    path.write_bytes(share_zero_points(_convert(model, quantized=_is_quantized(model))))


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def fold_weights(model: onnx.ModelProto) -> None:
    """Replace each dequantized weight by the float constant it stands for, in place.

    With them left in place the converted float network is silently wrong.
    """
    values = qdq.constants(model)
    kept = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in values:
            weight, scale = values[node.input[0]], values[node.input[1]]
            shape = (-1, *[1] * (weight.ndim - 1))
            folded = weight.astype(np.float32) * scale.reshape(shape)
            model.graph.initializer.append(onnx.numpy_helper.from_array(folded, node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    qdq.drop_unused_constants(model)


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


def _fake_quant(*, graph_node: Any, tf_layers_dict: dict[str, Any], **_: Any) -> None:
    """Translate QuantizeLinear to a rounding with the trained range."""
    import tensorflow as tf

    scale = float(graph_node.inputs[1].values)
    zero_point = int(graph_node.inputs[2].values)
    tensor = tf.quantization.fake_quant_with_min_max_args(
        tf_layers_dict[graph_node.inputs[0].name]["tf_node"],
        min=(-128 - zero_point) * scale,
        max=(127 - zero_point) * scale,
    )
    _record(tf_layers_dict, graph_node, tensor)


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


_TRANSLATIONS = {
    "QuantizeLinear": _fake_quant,
    "MaxPool": _max_pool,
    "Add": _elementwise,
    "Mul": _elementwise,
}
"""Our translations in place of onnx2tf's."""


@contextmanager
def _own_translations() -> Iterator[None]:
    """Within it, onnx2tf uses `_TRANSLATIONS`."""
    modules = {op: importlib.import_module(f"onnx2tf.ops.{op}") for op in _TRANSLATIONS}
    originals = {op: module.make_node for op, module in modules.items()}
    for op, module in modules.items():
        module.make_node = _TRANSLATIONS[op]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for op, module in modules.items():
            module.make_node = originals[op]  # type: ignore[attr-defined]


@contextmanager
def _scratch_directory() -> Iterator[None]:
    """A working directory that holds the sample images onnx2tf would download."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch, _SAMPLE_IMAGES), np.zeros((20, 128, 128, 3), np.float32))
        os.chdir(scratch)
        try:
            yield
        finally:
            os.chdir(before)


def _convert(model: onnx.ModelProto, *, quantized: bool) -> bytes:
    import onnx2tf
    import tensorflow as tf

    with _scratch_directory(), _own_translations():
        onnx.save(model, "model.onnx")
        network = onnx2tf.convert(
            input_onnx_file_path="model.onnx",
            output_folder_path="model",
            batch_size=1,
            not_use_onnxsim=True,
            # Only parity gates on the finished file decide; strict mode compares layouts op by
            # op on random data, for minutes.
            disable_strict_mode=True,
            disable_model_save=True,
            non_verbose=True,
        )
    # Not through the Keras model: its SavedModel holds every weight as JSON, which takes minutes.
    signature = [tf.TensorSpec(i.shape, i.dtype, qdq.INPUT) for i in network.inputs]
    function = tf.function(lambda image: {qdq.OUTPUT: network(image)}, input_signature=signature)
    holder = tf.Module()
    holder.function = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], holder
    )
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def share_zero_points(content: bytes) -> bytes:
    """Store equal zero point vectors of a TFLite file once.

    Per-channel tensors need a zero point for each channel, 8 bytes of zeros, for weights and
    again for biases: more than a fiftieth of the file. A flatbuffer may refer to one vector from
    many tables, and readers cannot tell.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._written: dict[bytes, int] = {}

        def CreateNumpyVector(self, values: NDArray[Any]) -> int:
            raw = values.tobytes()
            if values.dtype == np.int64 and raw in self._written:
                return self._written[raw]
            # Tensor data must lie on 16 bytes, as the schema asks (force_align).
            alignment = 16 if values.dtype == np.uint8 else values.dtype.itemsize
            self.StartVector(values.dtype.itemsize, values.size, alignment)
            self.head: int = self.head - len(raw)
            self.Bytes[self.head : self.head + len(raw)] = raw
            offset = int(self.EndVector())
            if values.dtype == np.int64:
                self._written[raw] = offset
            return offset

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    builder = Builder(len(content) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def inspect(path: Path) -> FileFacts:
    """Read a TFLite file: operations, MACs and grids from its flatbuffer."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    graph = model.subgraphs[0]
    names = {
        number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()
    }
    ops: Counter[str] = Counter()
    weights: Counter[tuple[float, ...]] = Counter()
    macs = int8_macs = 0
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        ops[name] += 1
        if name in {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}:
            data, weight, output = (graph.tensors[i] for i in (*op.inputs[:2], op.outputs[0]))
            # Depthwise weights are (1, height, width, channels), and every output channel has
            # its own: the same product.
            count = conv_macs(weight.shape, int(np.prod(output.shape[1:-1])))
            macs += count
            if weight.type == schema.TensorType.INT8:
                # Equal weights are stored once: each reader counts.
                weights[tuple(float(s) for s in weight.quantization.scale)] += 1
            types = {data.type, weight.type, output.type}
            int8_macs += count if types == {schema.TensorType.INT8} else 0
    grids: Counter[Grid] = Counter()
    for tensor in graph.tensors:
        if tensor.type == schema.TensorType.INT8 and not _is_constant(model, tensor):
            scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]
            grids[(float(scale), int(zero_point))] += 1
    return FileFacts(ops=dict(ops), int8_macs=int8_macs, macs=macs, grids=grids, weights=weights)


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


class TFLiteRunnable:
    """A TFLite file opened in LiteRT; XNNPACK is its default delegate."""

    batch: int | None = 1

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take one image (1, 3, side, side)."""
        self._interpreter.set_tensor(self._input["index"], images.transpose(0, 2, 3, 1))

    def invoke(self) -> None:
        """Run the network on the image that was set."""
        self._interpreter.invoke()

    def output(self) -> NDArray[np.float32]:
        """Logits (1, classes) of the last run."""
        return np.asarray(self._interpreter.get_tensor(self._output["index"]), np.float32)


def open_file(path: Path, threads: int = 1) -> TFLiteRunnable:
    """Open a TFLite file for running."""
    return TFLiteRunnable(path, threads)


def cannot_run() -> str | None:
    """Why this host cannot run TFLite files; None, since every host can."""
    return None
