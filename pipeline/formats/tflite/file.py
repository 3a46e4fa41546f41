"""TFLite files that keep the trained scales, run by LiteRT with XNNPACK.

onnx2tf drops QuantizeLinear on purpose and calibrates anew. Here its translation of that one
operation is replaced by TensorFlow's fake quantization with the trained range, and weights arrive
as float constants that lie on their int8 grid; TFLiteConverter then finds the same scales again.
Because they are float16 numbers, every product on the way is exact in float32. Where a channel's
largest weight is not 127 steps, it finds others, which are put right in its file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pipeline.base.errors import following
from pipeline.formats import as_onnx
from pipeline.formats.file_facts import Codes, FileFacts, Grid, codes_of, conv_macs
from pipeline.formats.format import ComputedBy, Option
from pipeline.formats.pixels import refuse_learned_input
from pipeline.formats.ports import Interface, Port
from pipeline.formats.refusals import refuse_for_tflite
from pipeline.formats.tflite import delegate
from pipeline.formats.tflite.elsewhere import answers, laid_out, numbers, tapped
from pipeline.formats.tflite.few_bits import in_few_bits
from pipeline.formats.tflite.flatbuffer import name_layers, share_zero_points
from pipeline.formats.tflite.float_layers import mark, without_marks
from pipeline.formats.tflite.metadata import describe as describe
from pipeline.formats.tflite.onnx2tf_folder import scratch_directory
from pipeline.formats.tflite.translations import own_translations
from pipeline.formats.tflite.weights import WEIGHTED, layer_weights, stored, with_weights


@following("a TFLite file")
def interface(path: Path) -> Interface:
    """What a file of TFLite takes and gives."""
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
            # Of three rows or one column, nothing else would tell it.
            channels_last=True if len(details["shape"]) == 4 else None,
        )

    interpreter = Interpreter(model_path=str(path))
    (image,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    return Interface(input=port(image), output=port(logits))


def load_writer() -> None:
    """Import onnx2tf and TensorFlow."""
    import onnx2tf  # noqa: F401
    import tensorflow  # noqa: F401


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    pixels: bool = False,
    options: Collection[Option] = (),
) -> None:
    """Write `program` (quantized or float) to the TFLite file `path`, batch 1, NHWC.

    Args:
        program: from the fold stage.
        path: of the file.
        pixels: the program takes pixel values 0..255; the file then takes 8-bit RGB images.
        options: with float16, the weights of a float program are stored as such numbers, which
            delegates of GPUs compute with; the CPU makes float32 of them when it loads the file.
            With few_bits, weights -7..7 of layers of one pixel are stored in 4 bits.
    """
    refuse_for_tflite(program)
    if pixels:
        refuse_learned_input(program)
    model = as_onnx.to_onnx(program)
    learned = layer_weights(model)
    if quantized := _is_quantized(model):
        mark(model)
    fold_weights(model)
    half = "float16" in options
    converted = _convert(model, quantized=quantized, pixels=pixels, half=half)
    content = without_marks(converted.content)
    content = name_layers(content, converted.layers, converted.convolved)
    content = with_weights(content, learned)
    if "few_bits" in options:
        content = in_few_bits(content)
    path.write_bytes(share_zero_points(content))


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def fold_weights(model: onnx.ModelProto) -> None:
    """Replace each dequantized weight by the float constant it stands for, in place.

    With them left in place the converted float network is silently wrong.

    before: weight int8, scale -> DequantizeLinear -> Conv
    after:  weight float32 (= int8 x scale) -> Conv
    """
    values = as_onnx.constants(model)
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
    as_onnx.drop_unused_constants(model)


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A TFLite file, and which of the program's layers TensorFlow's operations make.

    `layers` maps the name of a TensorFlow operation to the name of the layer it gives out,
    `convolved` that of one of a float convolution to the name of what it makes.
    """

    content: bytes
    layers: dict[str, str]
    convolved: dict[str, str]


def _convert(model: onnx.ModelProto, *, quantized: bool, pixels: bool, half: bool) -> Converted:
    import onnx2tf
    import tensorflow as tf

    convolved: dict[str, str] = {}
    with scratch_directory(), own_translations(convolved) as rounded:
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
    # A float network of pixels casts; a quantized one gets its uint8 input from the converter.
    cast = pixels and not quantized
    signature = [
        tf.TensorSpec(i.shape, tf.uint8 if cast else i.dtype, as_onnx.INPUT) for i in network.inputs
    ]

    def run(image: Any) -> dict[str, Any]:
        return {as_onnx.OUTPUT: network(tf.cast(image, tf.float32) if cast else image)}

    function = tf.function(run, input_signature=signature)
    holder = tf.Module()
    holder.function = function
    traced = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], holder)
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if pixels:
            converter.inference_input_type = tf.uint8
    elif half:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    names = [operation.name for operation in traced.graph.get_operations()]
    made = {name: convolved.get(("", *name.split("/"))[-2]) for name in names if quantized}
    return Converted(
        content=bytes(converter.convert()),
        layers=_layers(traced.graph, rounded),
        convolved={name: output for name, output in made.items() if output is not None},
    )


def _layers(graph: Any, rounded: dict[str, str]) -> dict[str, str]:
    """Which layer each rounding of a TensorFlow graph makes, and each operation that it rounds.

    The converter names a tensor after the operation that made it and drops the rounding, except
    where nothing made it: the image.
    """
    layers = {}
    for operation in graph.get_operations():
        if operation.type == "FakeQuantWithMinMaxArgs":
            layer = rounded[operation.name.split("/")[-2]]
            layers[operation.name] = layer
            layers[operation.inputs[0].op.name] = layer
    return layers


@following("a TFLite file")
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
    codes: Counter[Codes] = Counter()
    macs = int8_macs = 0
    whole_numbers = {schema.TensorType.INT8, schema.TensorType.INT4}
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        ops[name] += 1
        if name in WEIGHTED:
            data, weight, output = (graph.tensors[i] for i in (*op.inputs[:2], op.outputs[0]))
            # Depthwise weights are (1, height, width, channels), and every output channel has
            # its own: the same product.
            count = conv_macs(weight.shape, int(np.prod(output.shape[1:-1])))
            macs += count
            if weight.type in whole_numbers:
                # Equal weights are stored once: each reader counts.
                weights[tuple(float(s) for s in weight.quantization.scale)] += 1
                codes[codes_of(_weight(model, weight, depthwise=name.startswith("DEPTH")))] += 1
            # Weights of 4 bits are unpacked for the kernels of int8.
            int8 = {data.type, output.type} == {schema.TensorType.INT8}
            int8_macs += count if int8 and weight.type in whole_numbers else 0
    layers: dict[str, Grid] = {}
    for tensor in graph.tensors:
        if tensor.type == schema.TensorType.INT8 and not _is_constant(model, tensor):
            scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]
            layers[tensor.name.decode()] = (float(scale), int(zero_point))
    opened = open_file(path)
    return FileFacts(
        ops=dict(ops),
        int8_macs=int8_macs,
        macs=macs,
        layers=layers,
        weights=weights,
        codes=codes,
        partitions=opened.partitions(),
        outside=opened.outside(),
    )


def _weight(model: Any, tensor: Any, *, depthwise: bool) -> NDArray[np.int8]:
    """The whole numbers of a weight tensor: (out channels, inputs of a group, height, width)."""
    weight = stored(model, tensor)
    if depthwise:  # (1, height, width, out channels)
        return weight.transpose(3, 0, 1, 2)
    return weight if weight.ndim == 2 else weight.transpose(0, 3, 1, 2)


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


class TFLiteRunnable:
    """A TFLite file opened in LiteRT; XNNPACK is its default delegate."""

    batch: int | None = 1

    def __init__(self, content: bytes, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take one image (1, 3, side, side), normalised or pixel values as the file wants."""
        takes_pixels = self._input["dtype"] == np.uint8
        self._interpreter.set_tensor(self._input["index"], laid_out(images, pixels=takes_pixels))

    def invoke(self) -> None:
        """Run the network on the image that was set."""
        self._interpreter.invoke()

    def output(self) -> NDArray[np.float32]:
        """Logits or probabilities (1, classes) of the last run, or maps (1, classes, h, w)."""
        values = self._interpreter.get_tensor(self._output["index"])
        return np.asarray(answers(values), np.float32)

    def partitions(self) -> int:
        """How many parts of the graph XNNPACK runs; 1, and nothing beside it, is best."""
        # LiteRT's execution plan has no public reader.
        operations = self._interpreter._get_ops_details()
        return sum(operation["op_name"] == "DELEGATE" for operation in operations)

    def outside(self) -> dict[str, str]:
        """What XNNPACK does not run, and why, by the tensor that it makes."""
        tensors = self._interpreter.get_tensor_details()
        names = {int(found["index"]): str(found["name"]) for found in tensors}
        scales = {int(found["index"]): float(found["quantization"][0]) for found in tensors}
        known = {index: scale for index, scale in scales.items() if scale}
        left = delegate.outside(self._interpreter._get_ops_details())
        return {names.get(int(one["outputs"][0]), ""): delegate.why(one, known) for one in left}

    def more_outputs(self) -> list[NDArray[Any]]:
        """What a `tapped` file gives behind its answers."""
        further = self._interpreter.get_output_details()[1:]
        return [self._interpreter.get_tensor(output["index"]) for output in further]


@following("a TFLite file")
def open_file(path: Path, threads: int = 1) -> TFLiteRunnable:
    """Open a TFLite file for running."""
    return TFLiteRunnable(path.read_bytes(), threads)


@following("a TFLite file")
def trace(path: Path, images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
    """Every quantized tensor inside the file, as LiteRT with XNNPACK computes it.

    Args:
        path: the file.
        images: (batch, 3, side, side), as for `set_input`.

    Returns:
        Integers (batch, channels, height, width) on the program's grid, by the name of the
        program's layer.
    """
    copy = tapped(path)
    runnable = TFLiteRunnable(copy.content, threads=1)
    found: dict[str, list[NDArray[np.int8]]] = {name: [] for name in copy.names}
    for image in np.split(images, len(images)):
        runnable.set_input(image)
        runnable.invoke()
        for name, values in zip(copy.names, runnable.more_outputs(), strict=True):
            found[name].append(numbers(values))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def cannot_time() -> str | None:
    """Why this host cannot time TFLite files; None, since every host can."""
    return None


def evaluated() -> ComputedBy:
    """What computes the answers here: the runtime itself."""
    return "runtime"
